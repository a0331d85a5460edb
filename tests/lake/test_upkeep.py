"""Upkeep changes no row, whoever else does it or commits at the same time."""

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
from pipelines.lake import upkeep
from pipelines.lake.commit import append, stage_events
from pipelines.lake.files import read_footer
from pipelines.lake.history import complete_commits, take_snapshot
from pipelines.lake.publish import publish
from pipelines.lake.tables import Lake, create_lake, data_files
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.verify import verify_lake
from tests.lake.making import commit, make_events, stored, unnamed_files

_HOURS = 3600


@pytest.fixture
def filled(lake: Lake) -> Lake:
    """Return a lake with 6 commits of 20 events, hence several files of several days, and rows in every table."""
    handle = lake.table("events")
    for n in range(6):
        first = 20 * n
        commit(lake, handle, f"b{n}", make_events([f"e{first + i}" for i in range(20)], first_offset=first))
        append(lake, "conflicts", make_events([f"c{n}"], first_offset=1_000 + n), f"b{n}")
        complete_commits(lake, handle.version())
    return lake


def test_compaction_keeps_every_row_and_sorts_by_user(filled: Lake) -> None:
    """Each day becomes one file, sorted by user, time and id; rows, checkpoints and records are what they were."""
    before = {name: stored(filled, name) for name in ("events", "conflicts", "commits")}
    checkpoints = take_snapshot(filled).checkpoints
    done = {compacted.table: compacted for compacted in compact(filled, 2)}
    assert {name: stored(filled, name) for name in before} == before
    assert take_snapshot(filled).checkpoints == checkpoints
    assert (done["commits"].files_before, done["commits"].files_after, done["commits"].rows) == (6, 1, 6)
    days = {Path(path).parent.name for path in filled.table("events").file_uris()}
    assert len(filled.table("events").file_uris()) == len(days)
    for path in filled.table("events").file_uris():
        rows = pq.ParquetFile(path).read(["user_id", "event_time", "event_id"]).to_pylist()
        keys = [tuple(row.values()) for row in rows]
        assert keys == sorted(keys)
    _assert_verified(filled)


def test_a_user_is_looked_for_in_few_rows(lake: Lake) -> None:
    """Readers pass over the rest of a large day: row groups are small, and the Bloom filter of each knows its users."""
    many = _many_events(100_000)
    commit(lake, lake.table("events"), "many", many)
    path = lake.table("events").file_uris()[0]
    groups = pq.ParquetFile(path).metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= 40_000
    with duckdb.connect() as connection:
        probe = "SELECT count(*) FROM parquet_bloom_probe(?, 'user_id', ?) WHERE NOT bloom_filter_excludes"
        (of_nobody,) = connection.execute(probe, [path, "nobody"]).fetchone() or ()
        (of_first,) = connection.execute(probe, [path, "u-0"]).fetchone() or ()
    assert (of_nobody, of_first) == (0, 1)


def test_a_compacted_lake_is_left_alone(filled: Lake) -> None:
    """What was merged is not merged again, and a few files are not worth it."""
    assert compact(filled, 100) == []
    compact(filled, 2)
    version = filled.table("events").version()
    assert compact(filled, 2) == []
    assert filled.table("events").version() == version


@pytest.mark.parametrize("bound", ["MERGED_ROWS", "MERGED_BYTES"])
def test_a_day_of_any_size_is_merged_in_pieces(lake: Lake, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """No merge holds more than the bound, so a large day keeps several files, and is left alone after that."""
    handle = lake.table("events")
    for number in range(40):
        ids = [f"e{number}-{n}" for n in range(20)]
        commit(lake, handle, f"b{number}", make_events(ids, first_offset=20 * number))
    before = stored(lake)
    sizes = [read_footer(path).row_group(0).total_byte_size for path in data_files(lake.table("events"))]
    monkeypatch.setattr(upkeep, bound, {"MERGED_ROWS": 60, "MERGED_BYTES": 10 * max(sizes)}[bound])
    for _ in range(5):
        compact(lake, 2)
    merged = [read_footer(path) for path in data_files(lake.table("events"))]
    assert len(merged) < len(sizes)
    assert max(footer.num_rows for footer in merged) <= {"MERGED_ROWS": 60, "MERGED_BYTES": 240}[bound]
    assert stored(lake) == before
    version = lake.table("events").version()
    compact(lake, 2)
    assert lake.table("events").version() == version


@pytest.mark.parametrize("how_many", [2, 4])
def test_compactions_at_once_neither_double_nor_lose(filled: Lake, how_many: int) -> None:
    """Compactors that start together leave every row once."""
    before = {name: stored(filled, name) for name in ("events", "conflicts", "commits")}
    with ThreadPoolExecutor(how_many) as pool:
        list(pool.map(lambda _: compact(filled, 2), range(how_many)))
    assert {name: stored(filled, name) for name in before} == before
    _assert_verified(filled)


def test_a_compaction_that_comes_second_gives_up(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files were replaced between its reading and its commit: it commits nothing, and says so."""
    before = stored(filled)

    def compact_first(*arguments: object, **named: object) -> list[object]:
        monkeypatch.undo()
        compact(filled, 2)
        return upkeep.write_days(*arguments, **named)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(upkeep, "write_days", compact_first)
    assert compact(filled, 2) == []
    assert stored(filled) == before
    assert unnamed_files(filled) == []


def test_a_stale_compaction_cannot_commit(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it had not looked again, the log refuses it: it starts again and finds nothing to do."""
    before = stored(filled)
    replace = upkeep.replace_files

    def compact_between(*arguments: Any, **named: Any) -> None:
        monkeypatch.undo()
        compact(filled, 2)
        replace(*arguments, **named)

    monkeypatch.setattr(upkeep, "replace_files", compact_between)
    compact(filled, 2)
    assert stored(filled) == before


def test_ingest_beside_a_compaction_goes_on(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that commits while files are merged stays, and the compaction lands after it."""
    handle, before = filled.table("events"), stored(filled)
    replace = upkeep.replace_files

    def commit_between(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(upkeep, "replace_files", replace)
        handle.update_incremental()
        commit(filled, handle, "late", make_events(["late"], first_offset=120))
        replace(*arguments, **named)

    monkeypatch.setattr(upkeep, "replace_files", commit_between)
    compact(filled, 2)
    rows = stored(filled)
    assert [row for row in rows if row["event_id"] != "late"] == before
    assert len(rows) == len(before) + 1
    _assert_verified(filled)


def test_a_compaction_that_is_always_overtaken_gives_up(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an error that says so, and changes nothing."""
    before = stored(filled)

    def never(*_: object, **__: object) -> None:
        raise CommitFailedError("overtaken")

    monkeypatch.setattr(upkeep, "replace_files", never)
    with pytest.raises(TransientError, match="given up"):
        compact(filled, 2)
    assert stored(filled) == before
    assert unnamed_files(filled) == []


def test_a_reader_of_an_old_snapshot_reads_on(filled: Lake) -> None:
    """A compaction removes no file: who holds the files of a snapshot still reads them."""
    snapshot, before = take_snapshot(filled), stored(filled)
    compact(filled, 2)
    vacuum(filled, 24)
    rows = [row for path in snapshot.files["events"] for row in pq.ParquetFile(path).read().to_pylist()]
    assert sorted(rows, key=repr) == before


def test_vacuum_removes_old_orphans_and_keeps_the_rest(filled: Lake) -> None:
    """Files that no commit names go once they are older than the retention; live and young files stay."""
    before = stored(filled)
    (old,) = stage_events(filled, make_events(["orphan"]), "old")
    (young,) = stage_events(filled, make_events(["orphan"]), "young")
    _age(filled, "events", 25 * _HOURS, except_for=young.path)
    removed = vacuum(filled, 24)
    assert removed == [f"events/{old.path}"]
    assert Path(filled.folder("events"), young.path).exists()
    assert not Path(filled.folder("events"), old.path).exists()
    assert stored(filled) == before


def test_a_part_of_an_hour_of_retention_is_kept(filled: Lake) -> None:
    """Retention is never shortened: what is an hour and a half is not vacuumed after 61 minutes."""
    (old,) = stage_events(filled, make_events(["orphan"]), "old")
    _age(filled, "events", 61 * 60)
    assert vacuum(filled, 1.5) == []
    assert vacuum(filled, 1) == [f"events/{old.path}"]


def test_vacuum_keeps_what_was_replaced_within_the_retention(filled: Lake) -> None:
    """However old a file is: what counts is when it was replaced, for somebody may just be reading it."""
    _age(filled, "events", 100 * _HOURS)
    replaced = set(filled.table("events").file_uris())
    compact(filled, 2)
    assert vacuum(filled, 24) == []
    assert all(Path(path).exists() for path in replaced)


def test_vacuum_removes_what_was_replaced_before_the_retention(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged files go after the retention, and the rows are still there."""
    before, replaced = stored(filled), set(filled.table("events").file_uris())
    long_ago = time.time() - 25 * _HOURS
    with monkeypatch.context() as patch:
        patch.setattr(upkeep.time, "time", lambda: long_ago)
        compact(filled, 2)
    _age(filled, "events", 25 * _HOURS)
    vacuum(filled, 24)
    gone = {path for path in replaced if not Path(path).exists()}
    assert gone == replaced - set(filled.table("events").file_uris())
    assert gone
    assert stored(filled) == before


def test_the_log_of_a_compaction_carries_its_fence(filled: Lake) -> None:
    """A handle from before a compaction cannot commit maintenance of its own any more."""
    stale = filled.table("events")
    compact(filled, 2)
    with pytest.raises(CommitFailedError):
        publish(stale, [], {"maintenance": stale.version() + 1})


def _age(lake: Lake, name: str, seconds: float, except_for: str = "") -> None:
    then = time.time() - seconds
    for path in Path(lake.folder(name)).rglob("*.parquet"):
        if "_delta_log" not in path.parts and path != Path(lake.folder(name), except_for):
            os.utime(path, (then, then))


def _assert_verified(lake: Lake) -> None:
    # The conflicts of these lakes were appended without a batch that counts them.
    checks = [check for check in verify_lake(take_snapshot(lake)) if check.name != "each conflict is there"]
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 4


@pytest.mark.slow
def test_a_large_file_is_not_written_again_for_the_sake_of_small_ones(tmp_path: Path) -> None:
    """Small files of a day are merged with each other; once they are large together, all of them."""
    lake = create_lake(tmp_path)
    last = 0

    def add(count: int) -> None:
        nonlocal last
        day = make_events([f"e{n}" for n in range(last, last + count)])
        commit(lake, lake.table("events"), f"b{last}", same_day(day))
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
        add(10_000)
    compact(lake, 8)
    assert len(lake.table("events").file_uris()) == 1
    assert len(stored(lake)) == last


def same_day(events: pa.Table) -> pa.Table:
    """Return the events with one time."""
    place = events.schema.get_field_index("event_time")
    return events.set_column(place, events.schema.field(place), pa.repeat(events["event_time"][0], len(events)))


def _many_events(count: int) -> pa.Table:
    """Return events of one day and of as many users."""
    event = make_events(["e"]).drop_columns(["event_id", "user_id"])
    numbers = range(count)
    return (
        event.take([0] * count)
        .add_column(0, "event_id", pa.array([f"e-{i}" for i in numbers]))
        .add_column(1, "user_id", pa.array([f"u-{i}" for i in numbers]))
    )
