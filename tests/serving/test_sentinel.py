"""Redis behind Sentinels: publisher and reader find the primary, also after a failover (`fenced`)."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from pipelines.errors import ConfigurationError, FencedError, TransientError
from pipelines.serving.client import connect
from pipelines.serving.digest_cache import DigestCache
from pipelines.serving.publication import begin, write
from pipelines.serving.publish import publish as publish_with
from pipelines.serving.read import published, read_reputation
from pipelines.settings import RedisSettings, Settings
from tests.services.redis_sentinel import SentinelSystem
from tests.services.redis_server import refuse_replicas
from tests.services.waiting import wait_for
from tests.serving.conftest import always, documents, expected, publish, served, stamp


def settings_of(url: str) -> RedisSettings:
    return RedisSettings(url=SecretStr(url), socket_timeout_seconds=30)


def test_a_failover_between_publications(sentinels: SentinelSystem, tmp_path: Path) -> None:
    """Reader and publisher continue with the promoted replica; an older publisher is refused there, too."""
    cache, state = settings_of(sentinels.url()), DigestCache(tmp_path)
    settings = Settings(redis=cache)
    publish_with(always(documents(ann=1, bob=1)), stamp(2), cache, state)
    assert read_reputation("ann", settings) == {"score": 1}
    with connect(cache) as client:
        assert client.wait(1, 60_000) == 1
        sentinels.fail_over()
        wait_for("the reader to find the new primary", lambda: read_or_none("ann", settings))
        with pytest.raises(FencedError, match="and newer"):
            publish(always(documents(ann=0)), stamp(1), cache, tmp_path / "older")
        result = publish_with(always(documents(ann=2, bob=1)), stamp(3), cache, state)
        assert (result.written, result.full) == (1, False)
        assert served(client, "reputation") == expected(documents(ann=2, bob=1))
    info = published(settings)
    assert info is not None
    assert info.stamp == stamp(3)


def read_or_none(user: str, settings: Settings) -> object:
    try:
        return read_reputation(user, settings)
    except TransientError:
        return None


def test_a_failover_that_loses_writes(sentinels: SentinelSystem, tmp_path: Path) -> None:
    """The replica lacks a chunk and the announcement: the publication stops, the next one writes everything."""
    cache = settings_of(sentinels.url())
    publish(always(documents(ann=1)), stamp(1), cache, tmp_path)
    with connect(cache) as client:
        assert client.wait(1, 60_000) == 1
        refuse_replicas(client)
        under_way = begin(client, cache.prefix, stamp(2))
        write(under_way, [b"reputation:ann"], [b"2"])
        sentinels.fail_over()
        with pytest.raises(TransientError, match="Redis lost its data during the publication"):
            write(under_way, [b"reputation:bob"], [b"2"])
        assert served(client, cache.prefix) == expected(documents(ann=1))
        publish(always(documents(ann=2, bob=2)), stamp(2), cache, tmp_path)
        assert served(client, cache.prefix) == expected(documents(ann=2, bob=2))


@pytest.mark.parametrize(
    ("password", "service", "kind", "message"),
    [
        ("wr0ng", "mymaster", ConfigurationError, "by the Sentinels .* refused access while reading"),
        ("data-s3cret", "other", TransientError, "No master found for 'other'"),
    ],
)
def test_errors_name_the_sentinels_and_no_password(
    sentinels: SentinelSystem, password: str, service: str, kind: type[Exception], message: str
) -> None:
    """A wrong password, and a service that the Sentinels do not know."""
    with pytest.raises(kind, match=message) as caught:
        read_reputation("ann", Settings(redis=settings_of(sentinels.url(password, service))))
    assert not any(secret in str(caught.value) for secret in ("s3cret", "wr0ng"))
