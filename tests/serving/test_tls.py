"""Redis as in production: TLS, a private CA, and ACL users with minimal permissions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipelines.errors import ConfigurationError
from pipelines.serving.read import published, read_reputation
from pipelines.settings import RedisSettings, Settings
from tests.services.certificates import Certificates, make_certificates
from tests.services.redis_server import RedisServer
from tests.services.requirements import require
from tests.serving.conftest import always, documented_rules, documents, publish, stamp

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    require("redis-tls")
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_server(certificates: Certificates, tmp_path: Path) -> Iterator[RedisServer]:
    users = [
        f"user {who} on >{who}-s3cret {' '.join(documented_rules(who, 'reputation'))}"
        for who in ("publisher", "reader")
    ]
    with RedisServer(tmp_path, acl=users, certificates=certificates) as server:
        yield server


def settings_of(server: RedisServer, user: str, cafile: Path | None) -> Settings:
    url = SecretStr(server.url(user, f"{user}-s3cret"))
    return Settings(redis=RedisSettings(url=url, ssl_cafile=cafile, socket_timeout_seconds=5))


def test_publishing_and_reading_through_tls(
    tls_server: RedisServer, certificates: Certificates, tmp_path: Path
) -> None:
    """With the CA file, users with the documented permissions publish and read; the reader cannot publish."""
    publisher, reader = (settings_of(tls_server, user, certificates.ca) for user in ("publisher", "reader"))
    assert publish(always(documents(ann=1, bob=2)), stamp(1), publisher.redis, tmp_path / "state").full
    assert publish(always(documents(ann=1)), stamp(2), publisher.redis, tmp_path / "state").deleted == 1
    assert read_reputation("ann", reader) == {"score": 1}
    info = published(reader)
    assert info is not None
    assert info.documents == 1
    with pytest.raises(ConfigurationError, match="refused access while publishing") as caught:
        publish(always(documents(ann=2)), stamp(3), reader.redis, tmp_path / "other")
    assert "s3cret" not in str(caught.value)


def test_an_untrusted_certificate_is_refused(tls_server: RedisServer) -> None:
    """Without the CA file the certificate is refused, and the error names the setting."""
    with pytest.raises(ConfigurationError, match=r"untrusted certificate.*KARMALAKE_REDIS_SSL_CAFILE") as caught:
        read_reputation("ann", settings_of(tls_server, "reader", None))
    assert "s3cret" not in str(caught.value)
