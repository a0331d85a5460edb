"""One commit makes a batch visible, exactly once, and only on the version that its checkpoint was read from."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.errors import CommitUnknownError, FencedError, TransientError, UsageError
from pipelines.lake import commit as commit_module
from pipelines.lake import commit_log
from pipelines.lake.checkpoints import checkpoints
from pipelines.lake.commit import ConcurrentCommitError, append, commit_batch, stage_events
from pipelines.lake.commit_log import complete_commits, take_snapshot
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.tables import TABLES, Lake, create_lake, open_lake
from pipelines.lake.upkeep import compact
from tests.lake.builders import TOPIC_ID, commit, make_events, make_record, orphan_files, read_rows
from tests.services.waiting import PATIENCE_SECONDS

_CHECKPOINT = f"ingest:{TOPIC_ID}:0"


def test_a_commit_publishes_rows_checkpoint_and_record_together(lake: Lake) -> None:
    """Nothing is visible before the commit, and everything after it (`atomic`)."""
    handle, events = lake.table("events"), make_events(["a", "b"])
    record = make_record("b1", events)
    files = stage_events(lake.table("events"), events, "b1")
    assert read_rows(lake) == []
    assert lake.table("events").transaction_version(_CHECKPOINT) is None
    committed = commit_batch(lake, handle, files, record)
    assert [row["event_id"] for row in read_rows(lake)] == ["a", "b"]
    assert {row["batch_id"] for row in read_rows(lake)} == {"b1"}
    assert lake.table("events").transaction_version(_CHECKPOINT) == 2
    assert (committed.version, committed.committed is not None, committed.total("accepted")) == (1, True, 2)
    assert handle.version() == 1


def test_a_batch_without_events_moves_its_checkpoint(lake: Lake) -> None:
    """Offsets without a new event are read once, too."""
    record = make_record("b1", make_events([]))
    moved = replace(record.ranges[0], next_offset=5, read=5, dead_letters=5)
    commit_batch(lake, lake.table("events"), [], replace(record, ranges=(moved,)))
    assert lake.table("events").transaction_version(_CHECKPOINT) == 5


def test_two_ingesters_on_one_checkpoint_are_fenced(lake: Lake) -> None:
    """Of two handles at one version one commits; the other fails, and nothing of it is visible (`fenced`)."""
    first, second = lake.table("events"), lake.table("events")
    commit(lake, first, "b1", make_events(["a"]))
    with pytest.raises(FencedError, match=r"events-0@0\.\.1"):
        commit(lake, second, "b2", make_events(["b"]))
    assert [row["event_id"] for row in read_rows(lake)] == ["a"]


@pytest.mark.parametrize("start", [0, 1, 3, 100])
def test_a_range_that_begins_elsewhere_is_refused(lake: Lake, start: int) -> None:
    """A batch that does not begin at the checkpoint is not committed: it would skip records or count them twice."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a", "b"]))
    events = make_events(["c"], first_offset=start)
    record = make_record("b2", events, start=start)
    with pytest.raises(FencedError, match=rf"events-0@{start}..{start + 1} does not begin at the checkpoints"):
        commit_batch(lake, handle, stage_events(lake.table("events"), events, "b2"), record)
    assert [row["event_id"] for row in read_rows(lake)] == ["a", "b"]


def test_a_concurrent_commit_of_another_topic_partition_forces_a_retry(lake: Lake) -> None:
    """A concurrent commit that moved none of the batch's checkpoints forces a second deduplication and a retry."""
    first, second = lake.table("events"), lake.table("events")
    commit(lake, first, "b1", make_events(["a"]))
    with pytest.raises(ConcurrentCommitError):
        commit(lake, second, "b2", make_events(["b"], partition=1), partition=1)
    assert second.version() == 1, "the handle is at the newest version, for the second deduplication"
    assert commit(lake, second, "b2", make_events(["b"], partition=1), partition=1).version == 2


def test_a_concurrent_compaction_forces_a_retry(lake: Lake) -> None:
    """A concurrent compaction forces a retry; nothing is lost or duplicated."""
    handle = lake.table("events")
    for n in range(2):
        commit(lake, handle, f"b{n}", make_events([f"e{n}"], first_offset=n))
    stale = lake.table("events")
    compact(lake, 2)
    with pytest.raises(ConcurrentCommitError):
        commit(lake, stale, "b2", make_events(["e2"], first_offset=2))
    commit(lake, stale, "b2", make_events(["e2"], first_offset=2))
    assert [row["event_id"] for row in read_rows(lake)] == ["e0", "e1", "e2"]


@pytest.mark.parametrize("error", [CommitFailedError("the response was lost"), OSError("the disk was unavailable")])
def test_a_lost_response_is_recognised(lake: Lake, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A commit that succeeded although it reported a failure is found in the log, and not repeated."""
    monkeypatch.setattr(commit_module, "commit_actions", _then_raise(error))
    record = commit(lake, lake.table("events"), "b1", make_events(["a"]))
    assert record.version == 1
    assert [row["event_id"] for row in read_rows(lake)] == ["a"]


def test_a_lost_response_is_recognised_below_later_commits(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch keeps its own version if another commit follows before the log is read."""
    handle, other = lake.table("events"), lake.table("events")

    def commit_before_another(*arguments: object, **named: object) -> None:
        monkeypatch.undo()
        commit_actions(*arguments, **named)  # type: ignore[arg-type]
        other.update_incremental()
        commit(lake, other, "b2", make_events(["b"], partition=1), partition=1)
        raise CommitFailedError("the response was lost")

    monkeypatch.setattr(commit_module, "commit_actions", commit_before_another)
    assert commit(lake, handle, "b1", make_events(["a"])).version == 1
    assert handle.version() == 2


def test_a_commit_that_cannot_be_written_ends_the_ingester(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not retried: nothing is visible, and the next start can commit."""
    handle = lake.table("events")
    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "commit_actions", _raise(OSError("the disk is full")))
        with pytest.raises(TransientError, match=r"events-0@0\.\.1 .*the disk is full"):
            commit(lake, handle, "b1", make_events(["a"]))
    assert read_rows(lake) == []
    assert commit(lake, handle, "b1", make_events(["a"])).version == 1


def test_an_outcome_that_cannot_be_read_is_unknown(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the log cannot be read either, the error says so and what to do; the lake shows the outcome later."""
    handle = lake.table("events")
    monkeypatch.setattr(commit_module, "commit_actions", _then_raise(OSError("the disk was unavailable")))
    monkeypatch.setattr(Lake, "read_log", _raise(OSError("the disk is still unavailable")))
    with pytest.raises(CommitUnknownError, match="start again"):
        commit(lake, handle, "b1", make_events(["a"]))
    assert lake.table("events").transaction_version(_CHECKPOINT) == 1


def test_commit_records_are_completed_once(lake: Lake) -> None:
    """The table `commits` gets one row for each commit of a batch, however often it is completed, none for others."""
    handle = lake.table("events")
    for n in range(3):
        commit(lake, handle, f"b{n}", make_events([f"e{n}"], first_offset=n))
    compact(lake, 2)
    handle.update_incremental()
    for _ in range(3):
        complete_commits(lake, handle.version())
    rows = sorted(read_rows(lake, "commits"), key=lambda row: str(row["batch_id"]))
    assert [(row["batch_id"], row["version"], row["accepted"]) for row in rows] == [
        ("b0", 1, 1),
        ("b1", 2, 1),
        ("b2", 3, 1),
    ]
    assert rows[1]["ranges"][0]["next_offset"] == 2  # type: ignore[index]
    assert all(row["committed"] is not None for row in rows)


def test_concurrent_completion_of_the_records_is_harmless(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes read what is missing before either writes it; each commit still has one row."""
    handle = lake.table("events")
    for n in range(3):
        commit(lake, handle, f"b{n}", make_events([f"e{n}"], first_offset=n))
    both_read = threading.Barrier(2, timeout=PATIENCE_SECONDS)
    attempts: list[int] = []

    def wait_then_commit(*arguments: object, **named: object) -> None:
        attempts.append(1)
        if len(attempts) <= 2:
            both_read.wait()
        commit_actions(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(commit_log, "commit_actions", wait_then_commit)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: complete_commits(lake, 3), range(2)))
    assert sorted(str(row["batch_id"]) for row in read_rows(lake, "commits")) == ["b0", "b1", "b2"]
    assert orphan_files(lake) == []


def test_concurrent_appends_all_succeed(lake: Lake) -> None:
    """Concurrent appends of several ingesters need no lock: each retries on the newest version."""
    rows = make_events(["a", "b"])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: append(lake, "conflicts", rows, f"b{n}"), range(8)))
    assert len(read_rows(lake, "conflicts")) == 16


def test_an_append_that_loses_a_race_is_made_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append whose first attempt failed adds its rows once."""
    table = lake.table("conflicts")
    attempts: list[DeltaTable] = []

    def lose_first_race(handle: DeltaTable, *rest: object, **named: object) -> None:
        attempts.append(handle)
        if len(attempts) == 1:
            commit_actions(table, [], {"another": 1})
        commit_actions(handle, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(commit_module, "commit_actions", lose_first_race)
    append(lake, "conflicts", make_events(["a"]), "b1")
    assert (len(attempts), len(read_rows(lake, "conflicts"))) == (2, 1)


def test_an_append_that_is_refused_ends(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a concurrent commit a retry would not help: one attempt, a one-line error, and no orphan file."""
    attempts: list[int] = []

    def refuse(*_: object, **__: object) -> None:
        attempts.append(1)
        assert len(attempts) < 5
        raise CommitFailedError("read-only")

    monkeypatch.setattr(commit_module, "commit_actions", refuse)
    with pytest.raises(TransientError, match=r"conflicts cannot be committed to: read-only"):
        append(lake, "conflicts", make_events(["a"]), "b1")
    assert (attempts, orphan_files(lake)) == ([1], [])


def test_no_rows_make_no_commit(lake: Lake) -> None:
    """A batch without dead letters or conflicts does not commit to those tables."""
    append(lake, "conflicts", make_events([]), "b1")
    assert lake.table("conflicts").version() == 0


def test_a_snapshot_is_one_version_with_its_records(lake: Lake) -> None:
    """A snapshot has the files, the checkpoints and the records of all its commits, also after a crash."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a"]))
    commit(lake, handle, "b2", make_events(["b", "c"], partition=1), partition=1)
    snapshot = take_snapshot(lake)
    assert snapshot.version == 2
    assert checkpoints(snapshot.transactions) == {(TOPIC_ID, 0): 1, (TOPIC_ID, 1): 2}
    assert set(snapshot.files) == set(TABLES)
    assert len(snapshot.files["events"]) == 2
    assert len(read_rows(lake, "commits")) == 2


def test_the_empty_lake_has_a_snapshot(lake: Lake) -> None:
    """Before the first commit the snapshot has a version and no files."""
    snapshot = take_snapshot(lake)
    assert (snapshot.version, snapshot.transactions, sum(map(len, snapshot.files.values()))) == (0, {}, 0)


def test_creating_a_lake_again_changes_nothing(lake: Lake) -> None:
    """create_lake is idempotent on a lake with data."""
    commit(lake, lake.table("events"), "b1", make_events(["a"]))
    ids = {name: lake.table(name).metadata().id for name in TABLES}
    again = create_lake(lake.root)
    assert {name: again.table(name).metadata().id for name in TABLES} == ids
    assert [row["event_id"] for row in read_rows(again)] == ["a"]


@pytest.mark.slow
def test_several_create_one_lake_at_once(tmp_path: Path) -> None:
    """Ingesters that start at once on an empty folder get the same tables."""
    for attempt in range(10):
        with ThreadPoolExecutor(4) as pool:
            lakes = list(pool.map(lambda _, root: create_lake(root), range(4), [tmp_path / str(attempt)] * 4))
        for name in TABLES:
            assert len({lake.table(name).metadata().id for lake in lakes}) == 1


def test_opening_a_missing_lake_says_what_to_do(tmp_path: Path) -> None:
    """Opening before the first drain raises a UsageError that names the command."""
    with pytest.raises(UsageError, match="karmalake drain"):
        open_lake(tmp_path)


def _raise(error: Exception) -> object:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def _then_raise(error: Exception) -> object:
    def function(*arguments: object, **named: object) -> None:
        commit_actions(*arguments, **named)  # type: ignore[arg-type]
        raise error

    return function


def test_a_table_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """The error names the table and what to do, before any read or write."""
    create_lake(tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "commits")
    DeltaTable.create(tmp_path / "lake" / "commits", pa.schema([("name", pa.string())]))
    with pytest.raises(UsageError, match="commits is a Delta table, but not of karmalake: set data_dir"):
        create_lake(tmp_path / "lake").table("commits")
