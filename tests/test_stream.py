"""The long-lived process: it keeps what is served current, whatever comes and goes around it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from pipelines.errors import UsageError
from pipelines.lake.tables import create_lake, open_lake
from pipelines.refresh import rebuild_warehouse, refresh_warehouse
from pipelines.reputation import database_file
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.read import published, read_reputation
from pipelines.settings import Settings
from pipelines.stream import stream
from pipelines.verify import verify
from tests.draining import query, send, valid_records, with_ingest
from tests.services.proxy import Proxy
from tests.services.waiting import wait_for

COUNT = "SELECT count(*) FROM events"
POINTS = 'name = "points"\nversion = "{version}"\n[actions.A]\npoints = {points}\n'
THREE, FIVE = (parse_policy(POINTS.format(version=points, points=points)) for points in (3, 5))


@pytest.fixture
def streamed(settings: Settings) -> Settings:
    """Return settings of a lake where an event of action A is worth three points; the warehouse follows at once."""
    activate(create_lake(settings.lake_root), THREE)
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 0.2})
    return with_ingest(settings.model_copy(update={"reputation": reputation}))


@contextmanager
def streaming(settings: Settings) -> Generator["Future[None]"]:
    """Stream in a thread; on leaving, stop it and pass on its error."""
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stream, settings, stopping, lambda _: None, lambda *_: None)
        try:
            yield done
        finally:
            stopping.set()
        done.result(30)


def score(settings: Settings, user_id: str) -> Any:
    document = read_reputation(user_id, settings)
    return document and document["reputation_all_time"]["score"]


def serves(settings: Settings, user_id: str, points: int) -> None:
    wait_for(f"{user_id} to have {points} points", lambda: score(settings, user_id) == points)


def test_what_is_sent_is_served(streamed: Settings) -> None:
    """Each commit reaches Redis (`fresh`); at the end warehouse, lake and cache are at one version and all adds up."""
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-6", 3)
        send(streamed, valid_records(range(20)))
        serves(streamed, "u-6", 6)
    newest = open_lake(streamed.lake_root).table("events").version()
    with Warehouse(streamed.warehouse_path) as warehouse:
        assert warehouse.info.lake_version == newest
    info = published(streamed)
    assert info is not None
    assert (info.stamp.lake_version, info.documents) == (newest, 7)
    assert [check for check in verify(streamed) if not check.passed] == []


def test_a_stream_begins_without_a_lake(settings: Settings) -> None:
    """In a data folder that is not there yet, whichever of its loops is the first to look."""
    send(settings, valid_records(range(7)))
    with streaming(with_ingest(settings)):
        wait_for("the documents", lambda: (info := published(settings)) and info.documents == 7)


def test_a_policy_put_in_force_is_taken_up(streamed: Settings) -> None:
    """Without a restart, everybody's document is by the new rules."""
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-1", 3)
        activate(open_lake(streamed.lake_root), FIVE)
        serves(streamed, "u-1", 5)
    document = read_reputation("u-0", streamed)
    assert document is not None
    assert document["policy"] == {"name": "points", "version": "5"}


def _through(proxy: Proxy, settings: Settings) -> SecretStr:
    """Return the address of Redis with the proxy's place in it."""
    assert settings.redis.url is not None
    login, _, _ = settings.redis.url.get_secret_value().rpartition("@")
    return SecretStr(f"{login}@{proxy.address}/0")


@pytest.mark.slow
def test_ingest_goes_on_without_redis(streamed: Settings) -> None:
    """Redis is gone for a while: commits go on (`isolated`), and what it missed is published when it is back."""
    assert streamed.redis.url is not None
    with Proxy(urlsplit(streamed.redis.url.get_secret_value()).port or 6379) as proxy:
        redis = streamed.redis.model_copy(update={"url": _through(proxy, streamed)})
        behind = streamed.model_copy(update={"redis": redis})
        send(behind, valid_records(range(7)))
        with streaming(behind):
            serves(streamed, "u-0", 3)
            proxy.cut()
            for start in (7, 14):
                send(behind, valid_records(range(start, start + 7)))
                wait_for("the commit", lambda events=start + 7: query(behind, COUNT) == [(events,)])
            assert score(streamed, "u-0") == 3
            proxy.heal()
            serves(streamed, "u-0", 9)


@pytest.mark.slow
def test_ingest_goes_on_beside_a_slow_redis(streamed: Settings) -> None:
    """An answer of Redis takes 0.3 s: commits do not wait, and all is served in the end (`isolated`)."""
    assert streamed.redis.url is not None
    with Proxy(urlsplit(streamed.redis.url.get_secret_value()).port or 6379) as proxy:
        redis = streamed.redis.model_copy(update={"url": _through(proxy, streamed)})
        slow = streamed.model_copy(update={"redis": redis})
        send(slow, valid_records(range(7)))
        with streaming(slow):
            serves(streamed, "u-0", 3)
            proxy.delay(0.15)
            for start in (7, 14, 21):
                send(slow, valid_records(range(start, start + 7)))
                wait_for("the commit", lambda events=start + 7: query(slow, COUNT) == [(events,)])
            assert score(streamed, "u-0") < 12
            wait_for("something newer to be served", lambda: score(streamed, "u-0") > 3)
            proxy.heal()
            serves(streamed, "u-0", 12)


def test_nobody_else_derives_meanwhile(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh or a rebuild beside it is refused with a sentence, and harms nothing."""
    monkeypatch.setattr(database_file, "_LOCK_SECONDS", 0.1)
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-0", 3)
        for derive in (refresh_warehouse, rebuild_warehouse):
            with pytest.raises(UsageError, match=r"keeping warehouse\.duckdb up to date"):
                derive(streamed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_cleanly(streamed: Settings, tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends `karmalake stream` with exit code 0 and everything that was committed published."""
    assert streamed.redis.url is not None
    send(streamed, valid_records(range(7)))
    environment = os.environ | {
        "KARMALAKE_DATA_DIR": str(streamed.data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(streamed.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": streamed.kafka.topic,
        "KARMALAKE_REDIS_URL": streamed.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": streamed.redis.prefix,
    }
    program = [sys.executable, "-c", "from pipelines.cli import main; main()", "stream"]
    with (tmp_path / "out").open("w+") as out:
        with subprocess.Popen(program, env=environment, stdout=out, stderr=subprocess.STDOUT) as process:
            serves(streamed, "u-0", 3)
            process.send_signal(number)
            assert process.wait(30) == 0
        out.seek(0)
        said = out.read()
    assert "Traceback" not in said
    assert "everything that was committed is published" in said
    assert [check for check in verify(streamed) if not check.passed] == []
