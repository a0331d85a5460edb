"""Compaction and vacuum change no row, also with concurrent compactions and commits."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import CommitFailedError

from pipelines.errors import TransientError
from pipelines.lake import merge_groups, tables, upkeep
from pipelines.lake.checkpoints import checkpoints
from pipelines.lake.commit import append, stage_events
from pipelines.lake.commit_log import complete_commits, take_snapshot
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import read_footer
from pipelines.lake.tables import Lake, create_lake, data_files
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.verify import verify_lake
from tests.lake.builders import commit, create_older_lake, make_events, orphan_files, read_rows

_HOURS = 3600


@pytest.fixture(params=[create_lake, create_older_lake], ids=["ranges of days", "partitioned by day"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """Return a lake with 6 commits of 20 events: several files of several days, and rows in several tables."""
    lake = request.param(tmp_path / "lake")
    handle = lake.table("events")
    for n in range(6):
        first = 20 * n
        commit(lake, handle, f"b{n}", make_events([f"e{first + i}" for i in range(20)], first_offset=first))
        append(lake, "conflicts", make_events([f"c{n}"], first_offset=1_000 + n), f"b{n}")
        complete_commits(lake, handle.version())
    return lake


@pytest.mark.slow
def test_compaction_keeps_every_row_and_sorts_by_user(filled: Lake) -> None:
    """Each file becomes sorted by user, time and id, in one file, or one for each day; nothing else changes."""
    before = {name: read_rows(filled, name) for name in ("events", "conflicts", "commits")}
    transactions = take_snapshot(filled).transactions
    done = {compacted.table: compacted for compacted in compact(filled, 2)}
    assert {name: read_rows(filled, name) for name in before} == before
    assert checkpoints(take_snapshot(filled).transactions) == checkpoints(transactions) != {}
    assert (done["commits"].files_before, done["commits"].files_after, done["commits"].rows) == (6, 1, 6)
    days = len({row["event_time"].date() for row in read_rows(filled)})
    is_partitioned = bool(filled.table("events").metadata().partition_columns)
    assert len(filled.table("events").file_uris()) == (days if is_partitioned else 1)
    for path in filled.table("events").file_uris():
        rows = pq.ParquetFile(path).read(["user_id", "event_time", "event_id"]).to_pylist()
        keys = [tuple(row.values()) for row in rows]
        assert keys == sorted(keys)
    _assert_verified(filled)


def test_a_user_is_found_by_reading_few_rows(lake: Lake) -> None:
    """Readers skip the rest of a large day: row groups are small, and each has a Bloom filter of its users."""
    many = _many_events(100_000)
    commit(lake, lake.table("events"), "many", many)
    path = lake.table("events").file_uris()[0]
    groups = pq.ParquetFile(path).metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= 40_000
    with duckdb.connect() as connection:
        probe = "SELECT count(*) FROM parquet_bloom_probe(?, 'user_id', ?) WHERE NOT bloom_filter_excludes"
        (of_unknown,) = connection.execute(probe, [path, "unknown"]).fetchone() or ()
        (of_first,) = connection.execute(probe, [path, "u-0"]).fetchone() or ()
    assert (of_unknown, of_first) == (0, 1)


@pytest.mark.slow
def test_a_compacted_lake_is_not_compacted_again(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged files are not merged again, and fewer files than the minimum are not merged; each log is read once."""
    opened: list[str] = []
    table = Lake.table
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "table", lambda lake, name: opened.append(name) or table(lake, name))
        assert compact(filled, 100) == []
    assert opened == list(tables.TABLES)
    compact(filled, 2)
    version = filled.table("events").version()
    assert compact(filled, 2) == []
    assert filled.table("events").version() == version


@pytest.mark.slow
def test_a_few_files_on_very_many_days_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few for any partition to be merged, but many together: one commit leaves one file each, and every row."""
    lake = create_older_lake(tmp_path)
    monkeypatch.setattr(merge_groups, "_MAX_SURPLUS_FILES", 60)
    for number, days in enumerate((40, 40, 40)):
        events = make_events([f"e{number}-{n}" for n in range(24 * days)], partition=number)
        commit(lake, lake.table("events"), f"b{number}", events, partition=number)
        assert number == 2 or compact(lake, 8) == []
    before, version = read_rows(lake), lake.table("events").version()
    (merged,) = compact(lake, 8)
    assert (merged.table, merged.files_before, merged.files_after) == ("events", 120, 40)
    assert lake.table("events").version() == version + 1
    assert read_rows(lake) == before
    assert compact(lake, 8) == []


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["MAX_MERGE_ROWS", "MAX_MERGE_BYTES"])
def test_a_day_of_any_size_is_merged_in_pieces(lake: Lake, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """No merge exceeds the limit, so a large day keeps several files, and later runs do not change it."""
    handle = lake.table("events")
    for number in range(40):
        ids = [f"e{number}-{n}" for n in range(20)]
        commit(lake, handle, f"b{number}", make_events(ids, first_offset=20 * number))
    before = read_rows(lake)
    sizes = [read_footer(path).row_group(0).total_byte_size for path in data_files(lake.table("events"))]
    monkeypatch.setattr(upkeep, bound, {"MAX_MERGE_ROWS": 60, "MAX_MERGE_BYTES": 10 * max(sizes)}[bound])
    for _ in range(5):
        compact(lake, 2)
    merged = [read_footer(path) for path in data_files(lake.table("events"))]
    assert len(merged) < len(sizes)
    assert max(footer.num_rows for footer in merged) <= {"MAX_MERGE_ROWS": 60, "MAX_MERGE_BYTES": 240}[bound]
    assert read_rows(lake) == before
    version = lake.table("events").version()
    compact(lake, 2)
    assert lake.table("events").version() == version


@pytest.mark.slow
@pytest.mark.parametrize("how_many", [2, 4])
def test_concurrent_compactions_neither_double_nor_lose_rows(filled: Lake, how_many: int) -> None:
    """Compactions that start at once leave every row once."""
    before = {name: read_rows(filled, name) for name in ("events", "conflicts", "commits")}
    with ThreadPoolExecutor(how_many) as pool:
        list(pool.map(lambda _: compact(filled, 2), range(how_many)))
    assert {name: read_rows(filled, name) for name in before} == before
    _assert_verified(filled)


def test_a_compaction_that_comes_second_gives_up(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compaction whose files were replaced before its commit commits nothing, and reports nothing."""
    before = read_rows(filled)

    def compact_first(*arguments: object, **named: object) -> list[object]:
        monkeypatch.undo()
        compact(filled, 2)
        return upkeep.write_rows(*arguments, **named)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(upkeep, "write_rows", compact_first)
    assert compact(filled, 2) == []
    assert read_rows(filled) == before
    assert orphan_files(filled) == []


@pytest.mark.slow
def test_a_stale_compaction_cannot_commit(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log refuses a compaction on an old version: it starts again and finds nothing to do."""
    before = read_rows(filled)
    replace = upkeep.replace_files

    def compact_between(*arguments: Any, **named: Any) -> None:
        monkeypatch.undo()
        compact(filled, 2)
        replace(*arguments, **named)

    monkeypatch.setattr(upkeep, "replace_files", compact_between)
    compact(filled, 2)
    assert read_rows(filled) == before


@pytest.mark.slow
def test_ingest_beside_a_compaction_continues(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that commits during a merge stays, and the compaction commits after it."""
    handle, before = filled.table("events"), read_rows(filled)
    replace = upkeep.replace_files

    def commit_between(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(upkeep, "replace_files", replace)
        handle.update_incremental()
        commit(filled, handle, "late", make_events(["late"], first_offset=120))
        replace(*arguments, **named)

    monkeypatch.setattr(upkeep, "replace_files", commit_between)
    compact(filled, 2)
    rows = read_rows(filled)
    assert [row for row in rows if row["event_id"] != "late"] == before
    assert len(rows) == len(before) + 1
    _assert_verified(filled)


def test_a_compaction_that_loses_every_race_gives_up(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises an error that says so, and changes nothing."""
    before = read_rows(filled)

    def fail(*_: object, **__: object) -> None:
        raise CommitFailedError("another commit came first")

    monkeypatch.setattr(upkeep, "replace_files", fail)
    with pytest.raises(TransientError, match="given up"):
        compact(filled, 2)
    assert read_rows(filled) == before
    assert orphan_files(filled) == []


@pytest.mark.slow
def test_a_reader_of_an_old_snapshot_continues(filled: Lake) -> None:
    """A compaction removes no file: readers of an older snapshot can still read its files."""
    snapshot, before = take_snapshot(filled), read_rows(filled)
    compact(filled, 2)
    vacuum(filled, 24)
    rows = [row for path in snapshot.files["events"] for row in tables.read_rows("events", path).to_pylist()]
    assert sorted(rows, key=repr) == before


def test_vacuum_removes_old_orphans_and_keeps_the_rest(filled: Lake) -> None:
    """Files that no commit names are removed once they are older than the retention; all others stay."""
    before = read_rows(filled)
    (old,) = stage_events(filled.table("events"), make_events(["orphan"]), "old")
    (young,) = stage_events(filled.table("events"), make_events(["orphan"]), "young")
    _age(filled, "events", 25 * _HOURS, except_for=young.path)
    removed = vacuum(filled, 24)
    assert removed == [f"events/{old.path}"]
    assert Path(filled.folder("events"), young.path).exists()
    assert not Path(filled.folder("events"), old.path).exists()
    assert read_rows(filled) == before


def test_a_fractional_retention_is_not_shortened(filled: Lake) -> None:
    """A retention of 1.5 hours does not remove files of 61 minutes."""
    (old,) = stage_events(filled.table("events"), make_events(["orphan"]), "old")
    _age(filled, "events", 61 * 60)
    assert vacuum(filled, 1.5) == []
    assert vacuum(filled, 1) == [f"events/{old.path}"]


def test_vacuum_keeps_files_replaced_within_the_retention(filled: Lake) -> None:
    """The time of replacement counts, not the age of the file: a reader may still need it."""
    _age(filled, "events", 100 * _HOURS)
    replaced = set(filled.table("events").file_uris())
    compact(filled, 2)
    assert vacuum(filled, 24) == []
    assert all(Path(path).exists() for path in replaced)


@pytest.mark.slow
def test_vacuum_removes_what_was_replaced_before_the_retention(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged files are removed after the retention, and the rows stay."""
    before, replaced = read_rows(filled), set(filled.table("events").file_uris())
    long_ago = time.time() - 25 * _HOURS
    with monkeypatch.context() as patch:
        patch.setattr(upkeep.time, "time", lambda: long_ago)
        compact(filled, 2)
    _age(filled, "events", 25 * _HOURS)
    vacuum(filled, 24)
    removed = {path for path in replaced if not Path(path).exists()}
    assert removed == replaced - set(filled.table("events").file_uris())
    assert removed
    assert read_rows(filled) == before


@pytest.mark.slow
def test_checkpoints_name_replaced_files_as_long_as_a_vacuum_keeps_them(
    filled: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a week: a stream replaces two files with each commit, and each makes a checkpoint larger."""
    before, long_ago = set(filled.table("events").file_uris()), time.time() - 25 * _HOURS
    with monkeypatch.context() as patch:
        patch.setattr(upkeep.time, "time", lambda: long_ago)
        compact(filled, 2)
    vacuum(filled, 30)
    assert _files_named_as_replaced(filled) == len(before - set(filled.table("events").file_uris())) > 0
    vacuum(filled, 24)
    assert _files_named_as_replaced(filled) == 0
    version = filled.table("events").version()
    vacuum(filled, 24)
    assert filled.table("events").version() == version


def _files_named_as_replaced(lake: Lake) -> int:
    table = lake.table("events")
    table.create_checkpoint()
    checkpoint = Path(lake.folder("events"), "_delta_log", f"{table.version():020}.checkpoint.parquet")
    return sum(action is not None for action in pq.read_table(checkpoint)["remove"].to_pylist())


@pytest.mark.slow
def test_the_log_of_a_compaction_carries_its_fence(filled: Lake) -> None:
    """A handle from before a compaction can no longer commit the transaction `maintenance`."""
    stale = filled.table("events")
    compact(filled, 2)
    with pytest.raises(CommitFailedError):
        commit_actions(stale, [], {"maintenance": stale.version() + 1})


def _age(lake: Lake, name: str, seconds: float, except_for: str = "") -> None:
    then = time.time() - seconds
    for path in Path(lake.folder(name)).rglob("*.parquet"):
        if "_delta_log" not in path.parts and path != Path(lake.folder(name), except_for):
            os.utime(path, (then, then))


def _assert_verified(lake: Lake) -> None:
    # The conflicts of these lakes were appended without a batch that counts them.
    checks = [check for check in verify_lake(take_snapshot(lake)) if check.name != "each conflict is stored"]
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 4


@pytest.mark.slow
def test_a_large_file_is_not_rewritten_to_merge_small_ones(tmp_path: Path) -> None:
    """Small files are merged with each other, and large ones of a day with each other, once there are eight."""
    lake = create_lake(tmp_path)
    last = 0

    def add(count: int) -> None:
        nonlocal last
        day = make_events([f"e{n}" for n in range(last, last + count)])
        commit(lake, lake.table("events"), f"b{last}", _at_one_time(day))
        last += count

    add(200_000)
    (large,) = lake.table("events").file_uris()
    for _ in range(8):
        add(5)
    compact(lake, 8)
    files = lake.table("events").file_uris()
    assert len(files) == 2
    assert large in files
    for _ in range(8):
        add(17_000)
    compact(lake, 8)
    assert sorted(read_footer(path).num_rows for path in data_files(lake.table("events"))) == [40, last - 40]


def _at_one_time(events: pa.Table) -> pa.Table:
    """Return the events, all at the time of the first."""
    place = events.schema.get_field_index("event_time")
    return events.set_column(place, events.schema.field(place), pa.repeat(events["event_time"][0], len(events)))


def _many_events(count: int) -> pa.Table:
    """Return events of one day, each of its own user."""
    event = make_events(["e"]).drop_columns(["event_id", "user_id"])
    numbers = range(count)
    return (
        event.take([0] * count)
        .add_column(0, "event_id", pa.array([f"e-{i}" for i in numbers]))
        .add_column(1, "user_id", pa.array([f"u-{i}" for i in numbers]))
    )
