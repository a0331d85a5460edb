"""Reading: one GET, stamp and staleness of the publication, and errors without passwords."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import redis
from pydantic import SecretStr

from pipelines.errors import ConfigurationError, TransientError
from pipelines.serving import read
from pipelines.serving.client import connect
from pipelines.serving.publication import begin
from pipelines.serving.read import LeaderboardEntry, published, read_leaderboard, read_rank, read_reputation
from pipelines.settings import RedisSettings, Settings
from tests.serving.conftest import PrivateValkey, always, documented_rules, documents, documents_of, publish, stamp

PASSWORD = "s3cret/p@ss word"  # noqa: S105 # the one that no error may show
QUOTED = "s3cret%2Fp%40ss%20word"


def with_url(settings: Settings, url: str, **other: object) -> Settings:
    return settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"url": SecretStr(url), "socket_timeout_seconds": 2, **other})
        }
    )


def address(settings: Settings) -> str:
    assert settings.redis.url is not None
    return settings.redis.url.get_secret_value().rpartition("@")[2]


@pytest.fixture
def user(client: redis.Redis, settings: Settings) -> Iterator[Callable[..., Settings]]:
    """Return a function that creates an ACL user with the given rules, and returns settings with its credentials."""

    def make(*rules: str) -> Settings:
        client.execute_command("ACL", "SETUSER", "karl", "reset", "on", f">{PASSWORD}", *rules)
        return with_url(settings, f"redis://karl:{QUOTED}@{address(settings)}")

    yield make
    client.execute_command("ACL", "DELUSER", "karl")


def test_a_document_is_read_as_it_was_published(settings: Settings, tmp_path: Path) -> None:
    """A user's document is returned as a dict; a user without one, or an id that is not valid Unicode, gives None."""
    publish(always(documents_of({"ann": '{"user_id":"ann","score":1}'})), stamp(1), settings.redis, tmp_path)
    assert read_reputation("ann", settings) == {"user_id": "ann", "score": 1}
    assert read_reputation("bob", settings) is None
    assert read_reputation("\ud800", settings) is None


def test_a_read_is_one_command(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    """Reading takes one GET, on a cached connection."""
    publish(always(documents(ann=1)), stamp(1), settings.redis, tmp_path)
    read_reputation("ann", settings)
    before = client.info("stats")
    for _ in range(5):
        read_reputation("ann", settings)
    after = client.info("stats")
    assert after["total_commands_processed"] - before["total_commands_processed"] == 6  # and the INFO before
    assert after["total_connections_received"] == before["total_connections_received"]


def test_the_publication_reports_its_stamp_and_staleness(settings: Settings, tmp_path: Path) -> None:
    """Stamp, count, time of publication and staleness are those of the last complete publication (`fresh`)."""
    assert published(settings) is None
    now_us = time.time_ns() // 1_000
    shown = stamp(41, now_us - 3_000_000, "strict@3")
    publish(always(documents(ann=1, bob=2)), shown, settings.redis, tmp_path)
    info = published(settings)
    assert info is not None
    assert (info.stamp, info.documents) == (shown, 2)
    assert 3 <= info.staleness_seconds < 30
    assert 0 <= (info.published_at - shown.as_of).total_seconds() - 3 < 30


def test_a_publication_in_progress_is_not_shown(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    """Until a publication is complete, readers see the previous one."""
    begin(client, settings.redis.prefix, stamp(1))
    assert published(settings) is None
    publish(always(documents(ann=1)), stamp(1), settings.redis, tmp_path)
    begin(client, settings.redis.prefix, stamp(2))
    info = published(settings)
    assert info is not None
    assert info.stamp == stamp(1)


def test_settings_default_to_the_environment(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without settings, those of the environment are used, and read again after a failed read."""
    publish(always(documents(ann=1)), stamp(1), settings.redis, tmp_path)
    for name in [name for name in os.environ if name.startswith("KARMALAKE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KARMALAKE_REDIS_PREFIX", settings.redis.prefix)
    read._default_settings.cache_clear()
    try:
        monkeypatch.setenv("KARMALAKE_REDIS_URL", "redis://127.0.0.1:1/0")
        with pytest.raises(TransientError, match=r"127\.0\.0\.1:1, database 0 did not answer while reading"):
            read_reputation("ann")
        monkeypatch.setenv("KARMALAKE_REDIS_URL", settings.redis.url.get_secret_value() if settings.redis.url else "")
        assert read_reputation("ann") == {"score": 1}
    finally:
        read._default_settings.cache_clear()


def test_no_redis_says_what_to_do() -> None:
    """With no Redis configured or running, the error names both remedies."""
    with pytest.raises(ConfigurationError, match=r"karmalake local start.*KARMALAKE_REDIS_URL"):
        read_reputation("ann", Settings())


@pytest.mark.parametrize(
    "url",
    [
        f"http://u:{QUOTED}@h:1/0",
        f"redis://u:{PASSWORD}@h/0",
        f"redis://u:{QUOTED}@h:port/0",
    ],
)
def test_an_unreadable_address_is_refused_without_showing_it(url: str) -> None:
    """Another scheme, an invalid port, an unescaped password: a message without the URL."""
    with pytest.raises(ConfigurationError, match="must look like redis://") as caught:
        connect(RedisSettings(url=SecretStr(url)))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_wrong_password_is_refused_without_showing_it(user: Callable[..., Settings], tmp_path: Path) -> None:
    """A failed login is a configuration error; neither the right nor the wrong password is in the text."""
    right = user("+@all", "~*")
    wrong = with_url(right, f"redis://karl:wrong-{QUOTED}@{address(right)}")
    for attempt in (
        lambda: read_reputation("ann", wrong),
        lambda: publish(always(documents()), stamp(1), wrong.redis, tmp_path),
    ):
        with pytest.raises(ConfigurationError, match="refused access while") as caught:
            attempt()
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("rules", [(), ("+@all",), ("+@all", "~other:*"), ("+@all", "-mset", "~*")])
def test_missing_permissions_are_reported(
    user: Callable[..., Settings], tmp_path: Path, rules: tuple[str, ...]
) -> None:
    """No commands, no keys, other keys, or one missing command: a configuration error."""
    limited = user(*rules)
    with pytest.raises(ConfigurationError, match="refused access while publishing") as caught:
        publish(always(documents(ann=1)), stamp(1), limited.redis, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_the_documented_permissions_suffice(user: Callable[..., Settings], settings: Settings, tmp_path: Path) -> None:
    """The ACL rules of docs/redis.md suffice for publisher and reader, and the reader cannot write."""
    publisher = user(*documented_rules("publisher", settings.redis.prefix))
    publish(always(documents(ann=1, bob=2)), stamp(1), publisher.redis, tmp_path)
    publish(always(documents(ann=1)), stamp(2), publisher.redis, tmp_path)
    reader = user(*documented_rules("reader", settings.redis.prefix))
    assert read_reputation("ann", reader) == {"score": 1}
    assert published(reader) is not None
    with pytest.raises(ConfigurationError, match="refused access"):
        publish(always(documents(ann=1)), stamp(3), reader.redis, tmp_path)


def test_the_documented_permissions_suffice_for_leaderboards(
    user: Callable[..., Settings], settings: Settings, tmp_path: Path
) -> None:
    """The same with a leaderboard that is created, changed and deleted."""
    publisher = user(*documented_rules("publisher", settings.redis.prefix))
    ranking = publisher.redis.model_copy(update={"leaderboards": ("all_time",)})
    frame = documents(ann=1, bob=2).with_columns(all_time_score=pl.Series([1.0, 2.0]))
    publish(always(frame), stamp(1), ranking, tmp_path)
    publish(always(frame.head(1)), stamp(2), ranking, tmp_path)
    reader = user(*documented_rules("reader", settings.redis.prefix))
    assert read_leaderboard("all_time", reader) == [LeaderboardEntry(1, "ann", 1.0)]
    assert read_rank("ann", "all_time", reader) == 1
    publisher = user(*documented_rules("publisher", settings.redis.prefix))
    assert publish(always(documents(ann=1)), stamp(3), publisher.redis, tmp_path).full
    info = published(user(*documented_rules("reader", settings.redis.prefix)))
    assert info is not None
    assert info.leaderboards == ()


def test_a_silent_server_is_transient(settings: Settings, tmp_path: Path) -> None:
    """A server that is not listening is a transient error."""
    dead = with_url(settings, f"redis://karl:{QUOTED}@127.0.0.1:1/3")
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1, database 3 did not answer while publishing") as caught:
        publish(always(documents(ann=1)), stamp(1), dead.redis, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_a_full_server_is_transient(private_valkey: Callable[..., PrivateValkey], tmp_path: Path) -> None:
    """A server at its memory limit is reported; with free memory, the same publication succeeds."""
    server = private_valkey("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
    frame = documents_of({f"user{i}": "x" * 5_000 for i in range(4_000)})
    with pytest.raises(TransientError, match="cannot take commands at present"):
        publish(always(frame), stamp(1), server.settings, tmp_path / "state")
    server.client.config_set("maxmemory", 0)
    assert publish(always(frame), stamp(1), server.settings, tmp_path / "state").written == 4_000
    assert server.client.dbsize() == 4_001


def test_a_ca_file_without_encryption_is_refused(tmp_path: Path) -> None:
    """A CA file with an unencrypted URL is an error; a missing one is named."""
    with pytest.raises(ConfigurationError, match="does not start with rediss://"):
        connect(RedisSettings(url=SecretStr("redis://h/0"), ssl_cafile=tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match=r"ca.pem, which is not a file"):
        connect(RedisSettings(url=SecretStr("rediss://h/0"), ssl_cafile=tmp_path / "ca.pem"))
