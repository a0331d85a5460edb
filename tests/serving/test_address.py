"""The Redis URL: every kind of address is read, and what is refused is explained without a secret."""

import pytest
from pydantic import SecretStr

from pipelines.errors import ConfigurationError
from pipelines.serving.address import Address, parse_address
from pipelines.serving.client import connect
from pipelines.settings import RedisSettings


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address("server", "redis://h")),
        ("unix:///run/redis.sock?db=1", Address("server", "unix:///run/redis.sock?db=1")),
        ("redis+cluster://a,b:7000", Address("cluster", "redis://a", (("a", 6379), ("b", 7000)))),
        (
            "rediss+cluster://u:p%40,ss@a:1,[::1]:2/?ssl_cert_reqs=none",
            Address("cluster", "rediss://u:p%40,ss@a:1?ssl_cert_reqs=none", (("a", 1), ("::1", 2))),
        ),
        ("redis+cluster://:p@a/0", Address("cluster", "redis://:p@a", (("a", 6379),))),
        ("redis+sentinel://a,b:1/mymaster", Address("sentinel", "redis://a", (("a", 26379), ("b", 1)), "mymaster")),
        (
            "redis+sentinel://u:p@a/my.master-1/3?client_name=x&sentinel_username=s&sentinel_password=q%26",
            Address(
                "sentinel",
                "redis://u:p@a/3?client_name=x",
                (("a", 26379),),
                "my.master-1",
                {"username": "s", "password": "q&"},
            ),
        ),
    ],
)
def test_addresses_are_read(url: str, address: Address) -> None:
    """Hosts with their ports, the service, and the URL that redis-py reads the options from."""
    assert parse_address(url) == address
    assert "p%40" not in repr(address)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+cluster://u:s3cret@", "must look like redis://"),
        ("redis+cluster://u:s3cret@a,", "must look like redis://"),
        ("redis+cluster://u:s3cret@a,:7000", "must look like redis://"),
        ("redis+cluster://u:s3cret@a:70000", "must look like redis://"),
        ("redis+cluster://u:s3cret@a:0", "must look like redis://"),
        ("redis+cluster://u:s3cret@a#x", "must look like redis://"),
        ("redis+cluster://u:s3cret@a?x", "must look like redis://"),
        ("unix+cluster://u:s3cret@a", "must look like redis://"),
        ("redis+ring://u:s3cret@a", "must look like redis://"),
        ("redis+cluster://u:s3cret@a/1", "names a database, but a cluster has only one"),
        ("redis+cluster://u:s3cret@a?db=0", "has the option db, which a cluster does not have"),
        (
            "redis+cluster://u:s3cret@a?health_check_interval=3",
            "option health_check_interval, which a cluster does not",
        ),
        ("redis+cluster://u:s3cret@a?sentinel_password=s3cret", "has an unsupported option"),
        ("redis+cluster://u:s3cret@a?protocol=3", "has the option protocol, which karmalake sets itself"),
        ("redis+cluster://u:s3cret@a?ssl_certfile=x", "does not start with rediss"),
        ("redis+sentinel://u:s3cret@a", "names no service of the Sentinels"),
        ("redis+sentinel://u:s3cret@a/0/1/2", "names no service of the Sentinels"),
        ("redis+sentinel://u:s3cret@a/mymaster/x", "names no service of the Sentinels"),
        ("redis+sentinel://u:s3cret@a/mymaster/1?db=2", "gives the same option twice"),
        ("redis+sentinel://u:s3cret@a/mymaster?sentinel_password=s3cret&x=1", "has an unsupported option"),
    ],
)
def test_an_invalid_address_is_explained(url: str, message: str) -> None:
    """One sentence with the remedy, before anything is connected."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        connect(RedisSettings(url=SecretStr(url)))
    assert "s3cret" not in str(caught.value)
