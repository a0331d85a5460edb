"""The long-lived process: it keeps what is served current through outages around it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Semaphore
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pytest
from deltalake.exceptions import DeltaError
from pydantic import SecretStr

from pipelines import drain
from pipelines.backfill import backfill
from pipelines.boundary.stopping import Stopping
from pipelines.emit.producer import Record
from pipelines.errors import CommitUnknownError, CorruptionError, FencedError, TransientError, UsageError
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import create_lake, is_lake, open_lake
from pipelines.live_publisher import OnRefresh
from pipelines.operate.erase import erase
from pipelines.operate.lag.measure import measure_lag
from pipelines.operate.loads import loads_of_file, withdraw_loads
from pipelines.operate.merge_users import merge_user
from pipelines.operate.verify import verify
from pipelines.refresh import open_published, publish_warehouse, rebuild_warehouse, refresh_warehouse
from pipelines.reputation import database_file
from pipelines.reputation.activation import activate
from pipelines.reputation.derive import DerivationResult
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving import redis_store
from pipelines.serving.publication_state import Stamp
from pipelines.serving.read import published, read_reputation
from pipelines.serving.store import open_store
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
from pipelines.stream import stream
from tests.clocks import replaced_clock
from tests.commands import KARMALAKE, Started
from tests.draining import drain_all, query, score, send, valid_records, with_ingest
from tests.services.process import ended
from tests.services.proxy import Proxy
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.share import share

COUNT = "SELECT count(*) FROM events"
POINTS = 'name = "points"\nversion = "{version}"\n[actions.A]\npoints = {points}\n'
THREE, FIVE = (parse_policy(POINTS.format(version=points, points=points)) for points in (3, 5))

HALVING = parse_policy(
    'name = "halving"\nversion = "1"\ndecay_step_minutes = 1440\n[actions.A]\npoints = 3\nhalf_life_days = 30\n'
)


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
        done.result(PATIENCE_SECONDS)


def serves(settings: Settings, user_id: str, points: int) -> None:
    wait_for(f"{user_id} to have {points} points", lambda: score(settings, user_id) == points)


def assert_served(settings: Settings) -> None:
    """Assert that the documents are those that a refresh would publish now, and that everything adds up."""
    refresh_warehouse(settings)
    assert publish_warehouse(settings).written == 0
    assert [check for check in verify(settings) if not check.passed] == []


def test_sent_events_are_served(streamed: Settings) -> None:
    """Each commit reaches Redis (`fresh`); at the end lake and cache have one version."""
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-6", 3)
        send(streamed, valid_records(range(20)))
        serves(streamed, "u-6", 6)
    newest = open_lake(streamed.lake_root).table("events").version()
    info = published(streamed)
    assert info is not None
    assert (info.stamp.lake_version, info.documents) == (newest, 7)
    assert_served(streamed)


def _rarely_replacing(settings: Settings) -> Settings:
    """Return settings by which only the first turn is due to replace the warehouse, and commits cause the others."""
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 3_600})
    return settings.model_copy(update={"reputation": reputation})


def test_a_stream_begins_without_a_lake(settings: Settings) -> None:
    """With a missing data folder, whichever loop starts first."""
    send(settings, valid_records(range(7)))
    with streaming(with_ingest(settings)):
        wait_for("the documents", lambda: (info := published(settings)) and info.documents == 7)


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loops look for the lake in each turn, and retry at once."""
    monkeypatch.setattr("pipelines.lake.run_lake._CHECK_SECONDS", 0.0)
    monkeypatch.setattr("pipelines.retries._INITIAL_DELAY_SECONDS", 0.05)
    monkeypatch.setattr("pipelines.retries._MAX_DELAY_SECONDS", 0.05)


@pytest.mark.usefixtures("quick_checks")
def test_a_lake_that_disappears_is_waited_for(
    streamed: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`nothing-lost`: no new one is created, with or without events; when it is back, they are counted."""
    root, away = Path(streamed.lake_root), tmp_path / "unmounted"
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-6", 3)
        shutil.move(root, away)
        wait_for("ingest to notice it", lambda: f"ingest: the lake in {root} is gone" in caplog.text)
        wait_for("the refresh to notice it", lambda: f"refresh: the lake in {root} is gone" in caplog.text)
        send(streamed, [*valid_records(range(7, 14)), Record(b"u", b"not an event")])
        caplog.clear()
        wait_for("further tries", lambda: caplog.text.count("ingest: the lake in") > 3)
        assert measure_lag(streamed).lag_records == 15
        assert not is_lake(root)
        shutil.rmtree(root, ignore_errors=True)
        shutil.move(away, root)
        serves(streamed, "u-6", 6)
    assert_served(streamed)


@pytest.mark.usefixtures("quick_checks")
@pytest.mark.parametrize("events", [0, 7])
def test_another_lake_in_its_place_ends_the_stream(
    streamed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    """Nothing is committed to it from the next look on, also if it has as many commits."""
    root, other = Path(streamed.lake_root), streamed.model_copy(update={"data_dir": tmp_path / "other"})
    pausing, paused, replaced = threading.Event(), threading.Event(), threading.Event()

    def drain_or_pause(opened: drain.Ingest) -> CommitRecord | None:
        if not pausing.is_set():
            return drain.drain_once(opened)
        paused.set()
        replaced.wait(PATIENCE_SECONDS)
        return None

    def replace_lake_and_wait(done: "Future[None]") -> None:
        serves(streamed, "u-6", 3)
        pausing.set()
        assert paused.wait(PATIENCE_SECONDS)
        shutil.move(root, tmp_path / "unmounted")
        shutil.move(other.lake_root, root)
        send(streamed, valid_records(range(7, 7 + events)))
        pausing.clear()
        replaced.set()
        wait([done], PATIENCE_SECONDS)

    send(streamed, valid_records(range(7)))
    drain_all(other)
    monkeypatch.setattr("pipelines.ingester.drain_once", drain_or_pause)
    with pytest.raises(CorruptionError, match=f"another lake is in {root}"), streaming(streamed) as done:
        replace_lake_and_wait(done)
    assert query(streamed, "SELECT count(*) FROM events") == [(7,)]


def test_the_end_repeats_a_publication_that_fails_meanwhile(
    streamed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the publication in progress when the process stops costs no document (`fresh`)."""
    settings = _rarely_replacing(streamed)
    begun, stopping, write = threading.Event(), threading.Event(), redis_store.write

    def fail_once(*arguments: Any) -> None:
        if begun.is_set():
            return write(*arguments)
        begun.set()
        assert stopping.wait(PATIENCE_SECONDS)
        raise TransientError("no answer")

    send(settings, valid_records(range(7)))
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stream, settings, stopping, lambda _: None, lambda *_: None)
        try:
            serves(settings, "u-6", 3)
            monkeypatch.setattr("pipelines.serving.redis_store.write", fail_once)
            send(settings, valid_records(range(7, 14)))
            wait_for("the second publication", begun.is_set)
        finally:
            stopping.set()
        done.result(PATIENCE_SECONDS)
    assert score(settings, "u-6") == 6


def test_what_is_committed_after_the_signal_is_served(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fresh`: the refresh ends after ingest, also if it has turns between the signal and the last commit."""
    stopping, refreshed, commit_batch = threading.Event(), Semaphore(0), drain.commit_batch

    def commit(*arguments: Any) -> CommitRecord:
        stopping.set()
        for _ in range(3):
            assert refreshed.acquire(timeout=PATIENCE_SECONDS)
        return commit_batch(*arguments)

    monkeypatch.setattr(drain, "commit_batch", commit)
    send(streamed, valid_records(range(7)))
    stream(streamed, stopping, lambda _: None, lambda *_: refreshed.release())
    assert score(streamed, "u-6") == 3
    info = published(streamed)
    assert info is not None
    assert info.documents == 7
    assert_served(streamed)


def test_the_end_serves_what_is_new_and_leaves_the_warehouse(streamed: Settings) -> None:
    """An idle process ends at once. What was committed is served, and the next start replaces the warehouse."""
    settings = _rarely_replacing(streamed)
    send(settings, valid_records(range(7)))
    drain_all(settings)
    for sent, refreshes, points, in_warehouse in ((0, 1, 3, 3), (7, 2, 6, 3), (0, 1, 6, 6)):
        stopping, refreshed = threading.Event(), list[DerivationResult]()
        with ThreadPoolExecutor(1) as pool:
            on_refresh = _appending(refreshed)
            done = pool.submit(stream, settings, stopping, lambda _: None, on_refresh)
            try:
                wait_for("a refresh", lambda refreshed=refreshed: refreshed)
                wait_for("the warehouse", settings.warehouse_path.exists)
                send(settings, valid_records(range(7, 7 + sent)))
                serves(settings, "u-0", points)
            finally:
                stopping.set()
            done.result(PATIENCE_SECONDS)
        assert len(refreshed) == refreshes
        assert _points(settings) == [in_warehouse]
    assert_served(settings)


def test_the_end_refreshes_what_was_committed_after_the_last_refresh(
    streamed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the last turn alone; it does not replace the warehouse either (`fresh`)."""
    settings = _rarely_replacing(streamed)
    send(settings, valid_records(range(7)))
    drain_all(settings)
    stopping, commit_batch = threading.Event(), drain.commit_batch

    def commit(*arguments: Any) -> CommitRecord:
        stopping.set()
        return commit_batch(*arguments)

    refreshed = list[DerivationResult]()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stream, settings, stopping, lambda _: None, _appending(refreshed))
        try:
            wait_for("the warehouse", lambda: refreshed and settings.warehouse_path.exists())
            monkeypatch.setattr(drain, "commit_batch", commit)
            send(settings, valid_records(range(7, 14)))
            assert done.result(PATIENCE_SECONDS)
        finally:
            stopping.set()
    assert score(settings, "u-0") == 6
    assert _points(settings) == [3]
    assert_served(settings)


def test_the_end_removes_an_erased_user_from_the_warehouse(streamed: Settings) -> None:
    """The process ends before it would have replaced the warehouse (`erasable`)."""
    settings = _rarely_replacing(streamed)
    send(settings, valid_records(range(7)))
    drain_all(settings)
    with streaming(settings):
        wait_for("the warehouse", lambda: "u-3" in _users(settings))
        assert erase(settings, ["u-3"]).refreshed_elsewhere
    assert _users(settings) == [f"u-{n}" for n in range(7) if n != 3]
    assert read_reputation("u-3", settings) is None
    assert_served(settings)


def test_a_signal_before_the_first_refresh(streamed: Settings) -> None:
    """The refresh, which may take long, is left to the next start, and nothing is said to be published."""
    send(streamed, valid_records(range(7)))
    drain_all(streamed)
    stopping = threading.Event()
    stopping.set()
    assert not stream(streamed, stopping, lambda _: None, lambda *_: None)
    assert not streamed.warehouse_path.exists()


def _activate(settings: Settings) -> None:
    activate(open_lake(settings.lake_root), FIVE)


def _merge(settings: Settings) -> None:
    merge_user(settings, "u-1", "u-0", "one person", "olga")


@pytest.mark.parametrize(("record", "points"), [(_activate, 5), (_merge, 6)])
def test_the_end_applies_what_is_no_commit(streamed: Settings, record: Callable[[Settings], None], points: int) -> None:
    """An activation or a merge since the last refresh reaches the documents at the end."""
    settings = _rarely_replacing(streamed)
    send(settings, valid_records(range(7)))
    drain_all(settings)
    with streaming(settings):
        wait_for("the warehouse", settings.warehouse_path.exists)
        assert score(settings, "u-0") == 3
        record(settings)
    assert score(settings, "u-0") == points
    assert_served(settings)
    assert _points(settings) == [points]


def _points(settings: Settings) -> list[int]:
    """Return the points of u-0 in the warehouse."""
    with Warehouse(settings.warehouse_path) as warehouse:
        return warehouse.reputation("u-0")["all_time_score"].to_list()


def _appending(refreshed: list[DerivationResult]) -> OnRefresh:
    return lambda derived, _: refreshed.append(derived)


@contextmanager
def held_copies(monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[threading.Event, threading.Event]]:
    """Hold every copy of the warehouse; yield what is set when one begins, and what the test sets to release them."""
    begun, released, original = threading.Event(), threading.Event(), database_file.copyfile

    def copy(file: Path, target: Path) -> None:
        begun.set()
        assert released.wait(PATIENCE_SECONDS)
        original(file, target)

    monkeypatch.setattr(database_file, "copyfile", copy)
    try:
        yield begun, released
    finally:
        released.set()


def test_refreshes_do_not_wait_for_the_copy_of_the_warehouse(
    streamed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a copy takes its time, commits are served (`fresh`); the end waits for it."""
    stopping = threading.Event()
    send(streamed, valid_records(range(7)))
    with ThreadPoolExecutor(1) as pool, held_copies(monkeypatch) as (begun, released):
        done = pool.submit(stream, streamed, stopping, lambda _: None, lambda *_: None)
        try:
            wait_for("a copy to begin", begun.is_set)
            for points in (6, 9, 12):
                send(streamed, valid_records(range(points * 10, points * 10 + 7)))
                serves(streamed, "u-0", points)
            assert not streamed.warehouse_path.exists()
        finally:
            stopping.set()
        assert not done.done()
        released.set()
        done.result(PATIENCE_SECONDS)
    assert streamed.warehouse_path.exists()
    assert score(streamed, "u-0") == 12
    assert_served(streamed)
    assert _points(streamed) == [12]


def _fail_copies(monkeypatch: pytest.MonkeyPatch, errors: list[Exception]) -> None:
    """Let as many copies of the warehouse fail as there are errors."""
    original = database_file.copyfile

    def copy(file: Path, target: Path) -> None:
        if errors:
            raise errors.pop()
        original(file, target)

    monkeypatch.setattr("pipelines.retries._INITIAL_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(database_file, "copyfile", copy)


def test_a_copy_that_fails_is_retried(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As other outages of the refresh are: what is served stays current, and the next copy is published."""
    errors: list[Exception] = [OSError(28, "No space left on device") for _ in range(3)]
    _fail_copies(monkeypatch, errors)
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-0", 3)
        wait_for("the warehouse", streamed.warehouse_path.exists)
        send(streamed, valid_records(range(7, 14)))
        serves(streamed, "u-0", 6)
        wait_for("the next copy", lambda: _points(streamed) == [6])
    assert errors == []


def _stream_to_its_end(settings: Settings) -> None:
    with streaming(settings) as done:
        wait_for("its end", done.done)


def test_a_defect_of_a_copy_ends_it(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the copying thread that no retry repairs ends the loops, and is raised."""
    _fail_copies(monkeypatch, [ValueError("a defect") for _ in range(9)])
    send(streamed, valid_records(range(7)))
    with pytest.raises(ValueError, match="a defect"):
        _stream_to_its_end(streamed)


@pytest.mark.parametrize("where", ["pipelines.ingester.drain_once", "pipelines.refresh.take_snapshot_without_feed"])
def test_an_error_of_one_loop_is_noted_while_the_other_one_hangs(
    streamed: Settings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """So that the command, when it is ended by a signal meanwhile, ends with the error."""
    error, stopping, released = CorruptionError("damaged"), Stopping(), threading.Event()

    def fail(*_: object) -> None:
        raise error

    def hang(*_: object) -> None:
        assert released.wait(PATIENCE_SECONDS)

    places = {"pipelines.ingester.drain_once", "pipelines.refresh.take_snapshot_without_feed"}
    for place in places:
        monkeypatch.setattr(place, fail if place == where else hang)
    send(streamed, valid_records(range(7)))
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stream, streamed, stopping, lambda _: None, lambda *_: None)
        try:
            assert stopping.wait(PATIENCE_SECONDS)
            assert stopping.error is error
            assert not done.done()
        finally:
            released.set()
        with pytest.raises(CorruptionError, match="damaged"):
            done.result(PATIENCE_SECONDS)


def _users(settings: Settings) -> list[str]:
    if not settings.warehouse_path.exists():
        return []
    with Warehouse(settings.warehouse_path) as warehouse:
        return warehouse.reputation()["user_id"].to_list()


def test_an_erasure_during_a_copy(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy has the user's rows; the warehouse without them replaces it, and nothing brings them back."""
    send(streamed, valid_records(range(7)))
    with held_copies(monkeypatch) as (begun, released), streaming(streamed):
        try:
            serves(streamed, "u-3", 3)
            wait_for("a copy to begin", begun.is_set)
            assert erase(streamed, ["u-3"]).refreshed_elsewhere
        finally:
            released.set()
        wait_for("the warehouse without the user", lambda: (users := _users(streamed)) and "u-3" not in users)
        wait_for("the end of the document", lambda: read_reputation("u-3", streamed) is None)
    assert _users(streamed) == [f"u-{n}" for n in range(7) if n != 3]
    assert not list(streamed.data_dir.glob("*.next"))
    assert_served(streamed)


def test_a_load_is_withdrawn_beside_a_live_stream(streamed: Settings, tmp_path: Path) -> None:
    """Its events leave what is served without a restart, and new ones count; the load returns (`fresh`, `once`)."""
    path = tmp_path / "a.csv"
    path.write_text("".join(["user,at\n", *(f"u-{n % 7},2026-02-0{1 + n % 7}T00:00:0{n % 7}Z\n" for n in range(7))]))
    mapping = ColumnMapping("user", "at", "iso", "A")
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        backfill(streamed, path, mapping)
        serves(streamed, "u-3", 6)
        assert withdraw_loads(streamed, loads_of_file(streamed, str(path)), "wrong").record is not None
        serves(streamed, "u-3", 3)
        send(streamed, valid_records(range(7, 14)))
        serves(streamed, "u-3", 6)
        backfill(streamed, path, mapping)
        serves(streamed, "u-3", 9)
    assert query(streamed, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(21, 21)]
    assert_served(streamed)


@pytest.mark.parametrize("derived", [["warehouse.duckdb", "base/*"], ["warehouse.duckdb*", "base/*", "histories/*"]])
def test_derived_files_that_are_removed_are_made_again(streamed: Settings, derived: list[str]) -> None:
    """While it runs, without a restart: ingest and scores continue, and a complete warehouse is published."""
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-6", 3)
        wait_for("the warehouse", streamed.warehouse_path.exists)
        for file in [file for pattern in derived for file in streamed.data_dir.glob(pattern)]:
            if file.is_file() and file.suffix != ".lock":
                file.unlink(missing_ok=True)
        send(streamed, valid_records(range(7, 14)))
        serves(streamed, "u-6", 6)
        wait_for("a complete warehouse", lambda: open_published(streamed.warehouse_path) and _points(streamed) == [6])
    assert_served(streamed)


def test_an_activated_policy_is_applied(streamed: Settings) -> None:
    """Without a restart, all documents follow the new policy."""
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
def test_ingest_continues_without_redis(streamed: Settings) -> None:
    """During an outage of Redis, commits continue (`isolated`); afterwards everything missed is published."""
    assert streamed.redis.url is not None
    with Proxy(urlsplit(streamed.redis.url.get_secret_value()).port or 6379) as proxy:
        redis = streamed.redis.model_copy(update={"url": _through(proxy, streamed)})
        misconfigured = streamed.model_copy(update={"redis": redis})
        send(misconfigured, valid_records(range(7)))
        with streaming(misconfigured):
            serves(streamed, "u-0", 3)
            proxy.cut()
            for start in (7, 14):
                send(misconfigured, valid_records(range(start, start + 7)))
                wait_for("the commit", lambda events=start + 7: query(misconfigured, COUNT) == [(events,)])
            assert score(streamed, "u-0") == 3
            proxy.heal()
            serves(streamed, "u-0", 9)


@pytest.mark.slow
def test_ingest_continues_with_a_slow_redis(streamed: Settings) -> None:
    """A response of Redis takes 0.3 s: commits do not wait, and everything is served in the end (`isolated`)."""
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


def test_a_concurrent_derivation_is_refused(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A concurrent refresh or rebuild is refused with a message, and harms nothing."""
    monkeypatch.setattr(database_file, "_LOCK_SECONDS", 0.1)
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-0", 3)
        for derive in (refresh_warehouse, rebuild_warehouse):
            with pytest.raises(UsageError, match=r"it keeps warehouse\.duckdb up to date"):
                derive(streamed)


def _as_of(settings: Settings) -> datetime:
    info = published(settings)
    assert info is not None
    assert info.staleness_seconds >= 0
    return info.stamp.as_of


@pytest.mark.parametrize("seconds", share([5, 3 * 86_400], 2))
def test_a_clock_set_back_ends_nothing(
    streamed: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    """Ingest continues, and commits are served with the previous `as_of`, which never goes back; the log reports it."""
    clock = replaced_clock(monkeypatch)
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-0", 3)
        clock.set_back(seconds)
        before = _as_of(streamed)
        send(streamed, valid_records(range(7, 14)))
        serves(streamed, "u-0", 6)
        assert _as_of(streamed) >= before
        clock.set_back(0)
        wait_for("time to advance", lambda: _as_of(streamed) > before)
    assert "the clock is" in caplog.text
    assert "it was set back" in caplog.text
    assert_served(streamed)


def test_a_clock_set_back_between_two_streams(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock an hour behind, the next stream continues at the `as_of` that the previous one published."""
    clock = replaced_clock(monkeypatch)
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-0", 3)
    before = _as_of(streamed)
    clock.set_back(3_600)
    send(streamed, valid_records(range(7, 14)))
    with streaming(streamed):
        serves(streamed, "u-0", 6)
    assert _as_of(streamed) == before
    assert_served(streamed)


def test_a_step_of_decay_reaches_every_document(streamed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some users at a time, without a commit; one that comes meanwhile is served, too (`fresh`)."""
    monkeypatch.setattr("pipelines.live_publisher._ROUND_USERS", 2)
    activate(create_lake(streamed.lake_root), HALVING)
    settings, clock = _rarely_replacing(streamed), replaced_clock(monkeypatch)
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    behind = (datetime.now(UTC) - noon).total_seconds()
    clock.set_back(behind)

    def decayed_to() -> set[str]:
        documents = (read_reputation(f"u-{n}", settings) for n in range(7))
        return {"" if document is None else document["decayed_to"] for document in documents}

    send(settings, valid_records(range(7)))
    with streaming(settings):
        wait_for("the documents", lambda: "" not in decayed_to())
        before = decayed_to()
        clock.set_back(behind - 86_400)
        send(settings, valid_records(range(7, 14)))
        wait_for("the step", lambda: len(decayed_to()) == 1 and decayed_to().isdisjoint(before))
        send(settings, valid_records(range(14, 21)))
        wait_for("later events", lambda: (read_reputation("u-6", settings) or {})["reputation_all_time"]["events"] == 3)
    assert_served(settings)


def _stream_beside_a_newer_publisher(settings: Settings) -> None:
    with streaming(settings) as done:
        serves(settings, "u-0", 3)
        with open_store(settings.document_store) as store:
            store.begin(Stamp(1_000, 0, "points@3"))
        send(settings, valid_records(range(7, 14)))
        wait_for("its end", done.done)


def test_a_newer_publisher_ends_it(streamed: Settings) -> None:
    """A publisher of a later lake version is not a temporary error (`fenced`)."""
    send(streamed, valid_records(range(7)))
    with pytest.raises(FencedError, match=r"and newer|has taken over"):  # before a publication, or during one
        _stream_beside_a_newer_publisher(streamed)


_OUTAGES = (
    CommitUnknownError("may or may not be committed"),
    OSError("Generic S3 error"),
    DeltaError("Generic S3 error"),
    duckdb.IOException("connection reset"),
)
_LOOPS = ("pipelines.refresh.take_snapshot_without_feed", "pipelines.lake.run_lake.open_lake")


@pytest.mark.parametrize(
    ("where", "outage"),
    share([(where, outage) for where in _LOOPS for outage in _OUTAGES], len(_OUTAGES)),
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_temporary_errors_end_nothing(
    streamed: Settings, monkeypatch: pytest.MonkeyPatch, where: str, outage: Exception
) -> None:
    """In either loop, every kind of error for an unresponsive store is an outage: each day another kind in both."""
    module, _, name = where.rpartition(".")
    original, outages = getattr(sys.modules[module], name), [outage, outage]

    def failing(*arguments: Any) -> Any:
        if outages:
            raise outages.pop()
        return original(*arguments)

    monkeypatch.setattr("pipelines.retries._INITIAL_DELAY_SECONDS", 0.01, raising=False)
    monkeypatch.setattr(where, failing)
    send(streamed, valid_records(range(7)))
    with streaming(streamed):
        serves(streamed, "u-0", 3)
    assert outages == []


@pytest.mark.slow
@pytest.mark.parametrize("number", share([signal.SIGTERM, signal.SIGINT], 2))
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
    program = [*KARMALAKE, "stream"]
    with (tmp_path / "out").open("w+") as out:
        with ended(Started(program, env=environment, stdout=out, stderr=subprocess.STDOUT)) as process:
            serves(streamed, "u-0", 3)
            process.send_signal(number)
            assert process.wait(PATIENCE_SECONDS) == 0
        out.seek(0)
        output = out.read()
    assert "Traceback" not in output
    assert "everything committed is published" in output
    assert_served(streamed)
