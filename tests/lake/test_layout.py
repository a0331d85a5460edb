"""Which files hold which days: few files for a fine-grained history, and a reader of one day reads little else."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.formats import LAKE
from pipelines.lake import files, merge_groups
from pipelines.lake.commit import stage_events
from pipelines.lake.merge_groups import find_groups
from pipelines.lake.table_files import File, list_files
from pipelines.lake.tables import Lake, create_lake
from pipelines.lake.upkeep import compact
from tests.lake.builders import commit, create_older_lake, make_events, read_rows

_FIRST = date(2010, 1, 1)
_START_US = 1_262_304_000_000_000
_DAY_US = 86_400_000_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a day of 16 rows have its own file, and days that share one have 32 rows at most."""
    monkeypatch.setattr(files, "RANGE_ROWS", 32)
    monkeypatch.setattr(files, "FULL_ROWS", 16)
    monkeypatch.setattr(merge_groups, "FULL_ROWS", 16)


def _on_days(days: "list[int] | np.ndarray", *, first_offset: int = 0) -> pa.Table:
    """Return an event for each of these days after _FIRST, in this order."""
    numbers = np.arange(first_offset, first_offset + len(days))
    times = pa.array(_START_US + np.asarray(days) * _DAY_US + numbers, pa.timestamp("us", "UTC"))
    event = make_events(["e"]).take(np.zeros(len(days), np.int64))
    for name, values in {"event_id": map(str, numbers), "offset": numbers, "event_time": times}.items():
        at = event.schema.get_field_index(name)
        event = event.set_column(at, event.schema.field(at), pa.array(values, event.schema.field(at).type))
    return event


def _days_by_file(lake: Lake) -> dict[str, Counter[date]]:
    """Return how many events each file has of each day, and assert that the log tells its first and last day."""
    found = {}
    for file in list_files(lake.table("events")):
        times = pq.ParquetFile(f"{lake.folder('events')}/{file.path}").read(["event_time"])["event_time"]
        found[file.path] = Counter(time.date() for time in times.to_pylist())
        assert (file.first_day, file.last_day) == (min(found[file.path]), max(found[file.path]))
    return found


@pytest.mark.usefixtures("small")
def test_small_days_share_a_file_and_a_large_day_has_its_own(lake: Lake) -> None:
    """Whatever order the rows of a batch are in: each day is in one file, and no file is larger than need be."""
    days = np.repeat(np.arange(12), [5, 15, 15, 40, 2, 16, 1, 1, 1, 31, 9, 9])
    commit(lake, lake.table("events"), "b1", _on_days(np.random.default_rng(1).permutation(days)))
    found = [sorted((day - _FIRST).days for day in counts) for counts in sorted(_days_by_file(lake).values(), key=min)]
    assert found == [[0, 1], [2, 4, 6, 7, 8, 10], [3], [5], [9], [11]]


def test_a_fine_history_is_few_files(lake: Lake) -> None:
    """100,836 rows of 4,114 days are four files, and the log names the only one that has a day."""
    days = np.sort(np.random.default_rng(1).integers(0, 4_114, 100_836))
    commit(lake, lake.table("events"), "b1", _on_days(days))
    found = list_files(lake.table("events"))
    assert [file.rows for file in found][:3] == pytest.approx([files.RANGE_ROWS] * 3, rel=0.01)
    assert len(found) == 4
    assert len({day for file in found for day in (file.first_day, file.last_day)}) == 8
    assert max(_holding(lake, 4_114).values()) == 1


@pytest.mark.parametrize("create", [create_lake, create_older_lake])
@pytest.mark.usefixtures("small")
def test_other_engines_read_event_day_and_skip_files(create: Callable[[Path], Lake], tmp_path: Path) -> None:
    """A filter by event_day opens no other file, in a lake of either layout."""
    lake = create(tmp_path / "lake")
    for number in range(3):
        events = _on_days(np.repeat(np.arange(8), 10), first_offset=80 * number)
        commit(lake, lake.table("events"), f"b{number}", events)
    compact(lake, 2)
    events = pl.scan_delta(lake.folder("events"))
    assert events.filter(pl.col("event_time").dt.date() != pl.col("event_day")).collect().height == 0
    for path, days in _days_by_file(lake).items():
        if _FIRST not in days:
            Path(lake.folder("events"), path).unlink()
    assert events.filter(pl.col("event_day") == _FIRST).collect().height == 30


def test_an_older_lake_stays_partitioned(tmp_path: Path) -> None:
    """It is upgraded without rewriting a file, and later batches and merges keep a file for each day."""
    lake = create_older_lake(tmp_path / "lake")
    table = lake.table("events")
    assert table.metadata().configuration["karmalake.format"] == str(LAKE.number)
    assert table.metadata().partition_columns == ["event_day"]
    for number in range(2):
        commit(lake, lake.table("events"), f"b{number}", _on_days([0, 1, 2, 0], first_offset=4 * number))
    before = read_rows(lake)
    assert [set(counts) for counts in _days_by_file(lake).values()] == [{_FIRST + timedelta(n // 2)} for n in range(6)]
    compact(lake, 2)
    assert [set(counts) for counts in _days_by_file(lake).values()] == [{_FIRST + timedelta(n)} for n in range(3)]
    assert read_rows(lake) == before


def test_the_log_of_a_new_lake_has_no_statistics_but_days(lake: Lake) -> None:
    """A user_id or a time in the log would outlive an erasure (`erasable`)."""
    (file,) = stage_events(lake.table("events"), make_events(["a", "b"]), "b1")
    day = {"event_day": "2026-03-01"}
    assert json.loads(file.stats or "") == {
        "numRecords": 2,
        "minValues": day,
        "maxValues": day,
        "nullCount": {"event_day": 0},
    }


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_rows_in_no_order_of_time_are_sorted_out(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch has rows of all days; compactions leave few files for each day, and come to an end."""
    monkeypatch.setattr("pipelines.lake.upkeep.MAX_MERGE_ROWS", 500)
    generator = np.random.default_rng(1)
    weights = np.where(np.arange(200) % 50 == 7, 30, 1)
    for number in range(40):
        days = generator.choice(200, 60, p=weights / weights.sum())
        commit(lake, lake.table("events"), f"b{number}", _on_days(days, first_offset=60 * number))
    before = read_rows(lake)
    assert max(_holding(lake, 200).values()) == 40
    for _ in range(10):
        compact(lake, 4)
    assert compact(lake, 4) == []
    assert read_rows(lake) == before
    assert max(_holding(lake, 200).values()) <= 8
    assert max(sum(counts.values()) for counts in _days_by_file(lake).values() if len(counts) > 1) <= 32
    large = _FIRST + timedelta(7)
    shared = sum(counts[large] for counts in _days_by_file(lake).values() if len(counts) > 1)
    assert shared < 16 < sum(counts[large] for counts in _days_by_file(lake).values())


def _holding(lake: Lake, days: int) -> Counter[date]:
    """Return how many files the log offers to a reader of each day from _FIRST on."""
    ranges = [(file.first_day or _FIRST, file.last_day or _FIRST) for file in list_files(lake.table("events"))]
    each = [_FIRST + timedelta(n) for n in range(days)]
    return Counter({day: sum(first <= day <= last for first, last in ranges) for day in each})


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_trickle_of_days_is_few_files(lake: Lake) -> None:
    """Five events a day, committed each day: small neighbours are merged."""
    for number in range(36):
        commit(lake, lake.table("events"), f"b{number}", _on_days([number] * 5, first_offset=5 * number))
        if number % 6 == 5:
            compact(lake, 4)
    assert len(list_files(lake.table("events"))) <= 180 // 16 + 4
    assert max(_holding(lake, 36).values()) <= 3
    assert len(read_rows(lake)) == 180


def _file(first: int, last: int, rows: int = 20_000, *, is_partition: bool = False, size: int = 1_000) -> File:
    days = _FIRST + timedelta(first), _FIRST + timedelta(last)
    return File(f"{first}-{last}-{rows}-{size}", size, rows, *days, is_partition=is_partition)


def test_files_that_belong_together() -> None:
    """Small files of any day; large ones of one day; large ones whose days overlap and whose ranges are alike."""
    scattered = [_file(day, day, 10) for day in (0, 400, 4_000)]
    one_day = [_file(5, 5, size=size) for size in (1_000, 1_001, 1_002)]
    overlapping = [_file(day, day + 100) for day in range(3)]
    in_order = [_file(day, day + 100) for day in range(1_000, 1_300, 100)]
    narrow_and_wide = [_file(2_000, 2_010), _file(2_001, 2_011), _file(1_990, 3_000)]
    unknown = [File(f"{number}", 1_000, 0) for number in range(3)]
    every = sorted(
        [*scattered, *one_day, *overlapping, *in_order, *narrow_and_wide, *unknown],
        key=lambda file: file.first_day or date.min,
    )
    assert sorted(map(len, find_groups(every, 3))) == [3, 3, 6]
    assert one_day in find_groups(every, 3)
    assert overlapping in find_groups(every, 3)


def test_partitions_are_merged_by_day() -> None:
    """Also small files: a file cannot have two partitions."""
    older = [_file(day, day, 10, is_partition=True, size=size) for day in (0, 1) for size in (1_000, 1_001)]
    assert find_groups(older, 2) == [older[:2], older[2:]]
    assert find_groups(older, 3) == []
