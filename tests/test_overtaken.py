"""A batch overtaken by other commits counts once, is staged a bounded number of times, and leaves no orphan.

These tests commit between staging and commit on purpose, instead of relying on timing.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

import pipelines.drain as drain_module
from pipelines.backfill import backfill
from pipelines.contract.decode import Decoded
from pipelines.drain import Ingest, drain, open_ingest_from
from pipelines.errors import CommitUnknownError, TransientError
from pipelines.ingest.batch import Batch, OffsetRange
from pipelines.ingest.file import open_file
from pipelines.lake import commit_lock, files
from pipelines.lake.commit import CommitRecord, commit_batch, stage_events
from pipelines.lake.commit_lock import CommitLock
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.upkeep import vacuum
from pipelines.settings import IngestSettings, Settings
from pipelines.sources import csv_rows
from pipelines.sources.files import ColumnMapping
from tests.commands import run
from tests.conftest import REPOSITORY
from tests.draining import assert_verified, query
from tests.lake.builders import commit, make_events, orphan_files

MAPPING = ColumnMapping("user", "time", "s", "A", None, (), "id")
ROWS = 64
_CLOCK = 1_400_000_000


@pytest.fixture
def no_bus(tmp_path: Path) -> Settings:
    """Return settings without a bus, which accept any share of invalid rows as dead letters."""
    return Settings(data_dir=tmp_path / "data", ingest=IngestSettings(max_dead_letter_share=1))


def history(path: Path, rows: int = ROWS, *, rejected: int = 2) -> Path:
    """Write a file of events e-{n}, a day apart; the last `rejected` have no valid time."""
    times = [str(_CLOCK + n * 86_400) for n in range(rows - rejected)] + ["soon"] * rejected
    frame = {"id": [f"e-{n}" for n in range(rows)], "user": [f"u-{n % 7}" for n in range(rows)], "time": times}
    pl.DataFrame(frame).write_csv(path)
    return path


class Overtaking:
    """Calls `act` just before a commit of ingest, `times` times, and counts the rows that ingest stages."""

    def __init__(self, patch: pytest.MonkeyPatch, act: Callable[[int], None], times: int) -> None:
        self.commits = self.staged = 0
        self.staged_rows: list[int] = []

        def overtaken(*arguments: Any) -> CommitRecord:
            self.commits += 1
            if self.commits <= times:
                act(self.commits)
            return commit_batch(*arguments)

        def counted(table: DeltaTable, events: pa.Table, batch_id: str) -> Any:
            self.staged_rows.append(len(events))
            return stage_events(table, events, batch_id)

        patch.setattr(drain_module, "commit_batch", overtaken)
        patch.setattr(drain_module, "stage_events", counted)


def of_another(settings: Settings, ids: Callable[[int], list[str]]) -> Callable[[int], None]:
    """Return a function that commits events `ids(n)` of another topic at its n-th call."""

    def act(number: int) -> None:
        lake = open_lake(settings.lake_root)
        events = lake.table("events")
        start = events.transaction_version("ingest:topic-id:0") or 0
        commit(lake, events, f"other-{number}", make_events(ids(number), first_offset=start))

    return act


def load(settings: Settings, path: Path) -> list[CommitRecord]:
    records: list[CommitRecord] = []
    backfill(settings, path, MAPPING, records.append)
    return records


def orphans(settings: Settings) -> list[str]:
    """Return unreferenced files, and rows of dead letters and conflicts without a commit."""
    lake = open_lake(settings.lake_root)
    committed = {row for (row,) in query(settings, "SELECT batch_id FROM commits")}
    remaining = orphan_files(lake)
    for name in ("dead_letters", "conflicts"):
        stored = lake.table(name).to_pyarrow_table(columns=["batch_id"])["batch_id"].to_pylist()
        remaining += [f"{name} of {batch_id}" for batch_id in stored if batch_id not in committed]
    return remaining


@pytest.mark.slow
def test_an_unchanged_batch_is_staged_once(no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overtaken five times by unrelated events, a batch is written once, dead letters too, and committed whole."""
    create_lake(no_bus.lake_root)
    overtaking = Overtaking(monkeypatch, of_another(no_bus, lambda n: [f"other-{n}"]), times=5)
    (record,) = load(no_bus, history(tmp_path / "h.csv"))
    assert (record.total("accepted"), record.total("dead_letters")) == (ROWS - 2, 2)
    assert (overtaking.commits, overtaking.staged_rows) == (6, [ROWS - 2])
    assert orphans(no_bus) == []
    assert query(no_bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(ROWS + 3, ROWS + 3)]
    assert_verified(no_bus)


@pytest.mark.slow
def test_a_changed_batch_is_staged_by_halves(no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each overtaking commit has an event of the batch: half is staged again, old files go, each counts once."""
    create_lake(no_bus.lake_root)
    overtaking = Overtaking(monkeypatch, of_another(no_bus, lambda n: [f"e-{n}"]), times=3)
    records = load(no_bus, history(tmp_path / "h.csv"))
    assert overtaking.staged_rows[:4] == [62, 31, 14, 5], "of 64, 32, 16 and 8 rows, less what is known"
    assert [record.total("read") for record in records] == [8, 8, 16, 32]
    assert sum(record.total("conflicts") + record.total("duplicates") for record in records) == 3
    assert orphans(no_bus) == []
    assert query(no_bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(ROWS - 2, ROWS - 2)]
    assert query(no_bus, "SELECT count(*) FROM dead_letters") == [(2,)]
    assert_verified(no_bus)


@pytest.mark.slow
def test_a_batch_is_staged_again_no_more_often_than_it_can_be_halved(
    no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is overtaken: six halvings of 64 rows, then a row at a time, which is then a duplicate."""
    create_lake(no_bus.lake_root)
    offsets = iter(range(ROWS))
    overtaking = Overtaking(monkeypatch, of_another(no_bus, lambda _: [f"e-{next(offsets)}"]), times=10)
    records = load(no_bus, history(tmp_path / "h.csv"))
    assert sum(record.total("read") for record in records) == ROWS
    assert len(overtaking.staged_rows) <= len(records) + 10
    assert overtaking.staged_rows[0] == ROWS - 2
    assert orphans(no_bus) == []
    assert query(no_bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(ROWS - 2, ROWS - 2)]
    assert_verified(no_bus)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=30))
def test_halves_are_the_batch(steps: list[tuple[int, int]]) -> None:
    """Each record is in one half, each range starts where the previous one ends, and the sums are unchanged."""
    batch = _batch(steps)
    halves = batch.halves()
    assert replace(batch, divisible=False).halves() is None
    partitions = [partition for partition, _ in steps]
    assert (halves is None) == (max(map(partitions.count, partitions)) == 1)
    for part in halves or ():
        assert len(part.records) == len(part.decoded.events) == sum(r.read for r in part.ranges) < len(steps)
        assert part.records["offset"].to_pylist() == part.decoded.events["offset"].to_pylist()
    for place in batch.ranges if halves else ():
        parts = [r for part in halves or () for r in part.ranges if r.topic_partition == place.topic_partition]
        assert (parts[0].start_offset, parts[-1].next_offset) == (place.start_offset, place.next_offset)
        assert [r.start_offset for r in parts[1:]] == [r.next_offset for r in parts[:-1]]
        assert (sum(r.read for r in parts), sum(r.gaps for r in parts)) == (place.read, place.gaps)


def _batch(steps: list[tuple[int, int]]) -> Batch:
    """Return a batch with a record for each (topic partition, distance to the previous offset)."""
    nexts: dict[int, int] = {}
    rows: list[dict[str, int]] = []
    for partition, step in steps:
        nexts[partition] = nexts.get(partition, 0) + step
        rows.append({"topic_partition": partition, "offset": nexts[partition] - 1})
    records = pa.Table.from_pylist(rows, pa.schema([("topic_partition", pa.int32()), ("offset", pa.int64())]))
    counts = Counter(partition for partition, _ in steps)
    ranges = [OffsetRange("t", "t", n, 0, end).with_records(counts[n]) for n, end in nexts.items()]
    decoded = Decoded(records, records.slice(0, 0), pa.array([False] * len(rows), pa.bool_()), records.slice(0, 0))
    return Batch("test", records, decoded, tuple(ranges))


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["other", "e"], ids=["unchanged", "changed"])
def test_overtaken_at_every_attempt(
    no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str
) -> None:
    """A committer that ignores the lock: drain ends with a message, leaves nothing, and works afterwards."""
    create_lake(no_bus.lake_root)
    path = history(tmp_path / "h.csv")
    with monkeypatch.context() as patch:
        overtaking = Overtaking(patch, of_another(no_bus, lambda n: [f"{ids}-{n - 1}"]), times=1_000)
        with pytest.raises(
            TransientError, match=r"other writers kept committing to .*events: .* lost the race 40 times"
        ):
            load(no_bus, path)
        assert len(overtaking.staged_rows) <= 7
    assert orphans(no_bus) == []
    load(no_bus, path)
    assert query(no_bus, "SELECT count(*) - count(DISTINCT event_id) FROM events") == [(0,)]
    assert orphans(no_bus) == []
    assert_verified(no_bus)


def _failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("where", ["stage_events", "_commit_record"])
def test_an_error_leaves_no_orphan(
    no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whatever is raised, staged files and uncommitted dead letters are removed."""
    with monkeypatch.context() as patch:
        patch.setattr(drain_module, where, _failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            load(no_bus, history(tmp_path / "h.csv"))
    assert orphans(no_bus) == []
    (record,) = load(no_bus, tmp_path / "h.csv")
    assert record.total("read") == ROWS
    assert_verified(no_bus)


def test_files_written_before_an_error_are_removed(
    no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file of the fifth day cannot be written, it and the files of earlier days are removed."""
    monkeypatch.setattr(files, "FULL_ROWS", 1)
    write, written = files._write, [0]  # pyright: ignore[reportPrivateUsage]

    def fail_later(*arguments: Any, **named: Any) -> Any:
        written[0] += "/events/" in arguments[0]
        action = write(*arguments, **named)
        if written[0] == 5:
            raise OSError(28, "No space left on device")
        return action

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", fail_later)
        with pytest.raises(OSError, match="No space"):
            load(no_bus, history(tmp_path / "h.csv"))
    assert orphans(no_bus) == []


def test_files_that_may_be_committed_are_never_removed(
    no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit succeeds but its response is lost: the outcome is unknown, and every row is in the lake."""

    def commit_and_fail(*arguments: Any) -> CommitRecord:
        commit_batch(*arguments)
        raise CommitUnknownError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(drain_module, "commit_batch", commit_and_fail)
        with pytest.raises(CommitUnknownError):
            load(no_bus, history(tmp_path / "h.csv"))
    assert load(no_bus, tmp_path / "h.csv") == []
    assert query(no_bus, "SELECT count(user_id) FROM events") == [(ROWS - 2,)]
    assert_verified(no_bus)


@pytest.mark.slow
def test_vacuum_removes_what_a_killed_backfill_staged(no_bus: Settings, tmp_path: Path) -> None:
    """A process killed between staging and commit leaves orphans; vacuum removes each of them."""
    path = history(tmp_path / "h.csv")
    code = (
        "import os, sys; from pathlib import Path; import pipelines.drain as d, pipelines.lake.files as files\n"
        "files.FULL_ROWS = 1\n"
        "from tests.test_overtaken import MAPPING, Settings, IngestSettings, load\n"
        "d.commit_batch = lambda *_: os._exit(9)\n"
        "load(Settings(data_dir=Path(sys.argv[1]), ingest=IngestSettings(max_dead_letter_share=1)), Path(sys.argv[2]))"
    )
    assert run(["-c", code, str(no_bus.data_dir), str(path)], cwd=REPOSITORY).returncode == 9
    remaining = [name for name in orphans(no_bus) if name.endswith(".parquet")]
    assert len(remaining) == ROWS - 2
    for name in remaining:
        os.utime(name, (_CLOCK, _CLOCK))
    assert len(vacuum(open_lake(no_bus.lake_root), 1)) == len(remaining)
    load(no_bus, path)
    assert_verified(no_bus)


def test_the_commit_lock_makes_others_wait(no_bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others commit after it is released; while it is held, they wait for a bounded time."""
    folder = create_lake(no_bus.lake_root).folder("events")
    order: list[str] = []

    def another() -> None:
        CommitLock(folder).wait()
        order.append("another")

    waiting = threading.Thread(target=another)
    with commit_lock.commit_lock(folder) as lock:
        lock.acquire()
        lock.wait()
        waiting.start()
        waiting.join(0.05)
        order.append("ours")
    waiting.join()
    assert order == ["ours", "another"]
    monkeypatch.setattr(commit_lock, "LOCK_TIMEOUT_SECONDS", 0.02)
    with commit_lock.commit_lock(folder) as lock:
        lock.acquire()
        another()
    assert order[-1] == "another"


def test_an_overtaken_batch_holds_the_commit_lock(
    no_bus: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock from the first conflict to its commit, so at most one more commit overtakes it."""
    create_lake(no_bus.lake_root)
    folder = open_lake(no_bus.lake_root).folder("events")
    monkeypatch.setattr(commit_lock, "LOCK_TIMEOUT_SECONDS", 0.01)
    free: list[bool] = []

    def look(*_: Any) -> None:
        with commit_lock.commit_lock(folder) as lock:
            lock.acquire()
            free.append(lock.descriptor is not None)

    act = of_another(no_bus, lambda n: [f"other-{n}"])
    Overtaking(monkeypatch, lambda n: look() if n == 2 else act(n), times=2)
    load(no_bus, history(tmp_path / "h.csv"))
    look()
    assert free == [False, True]


@pytest.mark.slow
def test_a_backfill_beside_continuous_ingest(no_bus: Settings, tmp_path: Path) -> None:
    """Both commit, whatever their speed: neither starves, nothing is lost or duplicated, and no orphan is left."""
    create_lake(no_bus.lake_root)
    slow = history(tmp_path / "slow.csv", 4_000, rejected=0)
    settings = no_bus.model_copy(update={"ingest": IngestSettings(max_batch_records=400)})
    fast = no_bus.model_copy(update={"ingest": IngestSettings(max_batch_records=1)})
    done, beside = threading.Event(), [0]

    def ingest_on(ingest: Ingest) -> None:
        while not done.is_set():
            beside[0] += drain(ingest, lambda _: None, max_batches=1)

    def another() -> None:
        path = tmp_path / "fast.csv"
        pl.DataFrame(
            {"id": [f"f-{n}" for n in range(5_000)], "user": ["u"] * 5_000, "time": [_CLOCK] * 5_000}
        ).write_csv(path)
        with open_ingest_from(open_file(path, MAPPING, fast), fast) as ingest:
            ingest_on(ingest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "_BLOCK_BYTES", 300)
        concurrent = threading.Thread(target=another)
        concurrent.start()
        try:
            records = load(settings, slow)
        finally:
            done.set()
            concurrent.join()
    assert sum(record.total("accepted") for record in records) == 4_000
    assert beside[0] > 0
    assert orphans(no_bus) == []
    assert_verified(no_bus)
