"""Times and dates without a zone are those of `time_zone` in every format, by plain fields and by a SELECT."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from pipelines.backfill import backfill
from pipelines.errors import UsageError
from pipelines.mapping.source_files import SourceFile, read_source
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping, read_events
from tests.draining import assert_verified, query

_NOON = datetime.fromisoformat("2025-07-01 12:00")
_MIDNIGHT = datetime.fromisoformat("2025-07-01")
_TABLE = pa.table({"u": ["a"], "at": pa.array([_NOON], pa.timestamp("us")), "day": [date(2025, 7, 1)]})
_WRITERS: dict[str, Callable[[Path], object]] = {
    "csv": lambda path: path.write_text("u,at,day\na,2025-07-01 12:00,2025-07-01\n"),
    "ndjson": lambda path: path.write_text(json.dumps({"u": "a", "at": "2025-07-01T12:00:00", "day": "2025-07-01"})),
    "parquet": lambda path: pq.write_table(_TABLE, path),
    "arrow": lambda path: pyarrow.feather.write_feather(_TABLE, path),
    "orc": lambda path: pyarrow.orc.write_table(_TABLE, path),
}
_SELECT = "SELECT u AS user_id, 'A' AS action_type, {time} AS timestamp FROM record"


def _write(folder: Path) -> list[Path]:
    """Write one row in every format, and return the files."""
    paths = [folder / f"rows.{name}" for name in _WRITERS]
    for path in paths:
        _WRITERS[path.suffix[1:]](path)
    return paths


def _source(folder: Path, time: str, keys: str = "") -> SourceFile:
    path = folder / "rows.toml"
    path.write_text(f'files = ["rows.csv"]\nselect = """{_SELECT.format(time=time)}"""\n{keys}\n')
    return read_source(path)


@pytest.mark.parametrize(("zone", "hours"), [(None, 0), ("Europe/Berlin", 2), ("America/New_York", -4)])
@pytest.mark.parametrize(("column", "local"), [("at", _NOON), ("day", _MIDNIGHT)])
def test_a_row_is_one_event_in_every_format(
    tmp_path: Path, column: str, local: datetime, zone: str | None, hours: int
) -> None:
    """The time is that of the zone, of UTC if none is given, and so the event_id is one."""
    mapping = ColumnMapping("u", column, action_type="A", time_zone=zone)
    found: dict[str, Any] = {}
    for path in _write(tmp_path):
        ((event_id, time),) = (
            (row["event_id"], row["event_time"]) for table in read_events(path, mapping) for row in table.to_pylist()
        )
        found[path.suffix] = time, event_id
    assert {time for time, _ in found.values()} == {local.replace(tzinfo=UTC) - timedelta(hours=hours)}, found
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
@pytest.mark.parametrize("by", ["fields", "select"])
@pytest.mark.parametrize("column", ["at", "day"])
def test_a_row_counts_once_whatever_its_format(tmp_path: Path, by: str, column: str) -> None:
    """Also as a frame of polars or Arrow (`once`)."""
    settings = Settings(data_dir=tmp_path / "data")
    keys = 'time_zone = "Europe/Berlin"'
    rows = (
        ColumnMapping("u", column, action_type="A", time_zone="Europe/Berlin")
        if by == "fields"
        else _source(tmp_path, f'"{column}"', f'time_unit = "iso"\n{keys}')
    )
    for data in (*_write(tmp_path), _TABLE, pl.from_arrow(_TABLE)):
        backfill(settings, data, rows)
    (expected,) = {"at": ["2025-07-01 10:00:00"], "day": ["2025-06-30 22:00:00"]}[column]
    assert query(settings, "SELECT event_time::TIMESTAMP::VARCHAR FROM events") == [(expected,)]
    assert query(settings, "SELECT count(*) FROM conflicts") == [(0,)]
    assert_verified(settings)


@pytest.mark.slow
@pytest.mark.parametrize(("time", "kind"), [('"at"', "TIMESTAMP"), ("day", "DATE")])
def test_a_select_of_times_without_a_zone_needs_one(tmp_path: Path, time: str, kind: str) -> None:
    """As from a topic; text is in UTC, as the pages say."""
    settings = Settings(data_dir=tmp_path / "data")
    source = _source(tmp_path, time)
    text, *typed = [*_write(tmp_path)[:1], tmp_path / "rows.parquet", tmp_path / "rows.arrow"]
    for path in typed:
        with pytest.raises(UsageError, match=f"timestamp is {kind}, without a zone: add time_zone"):
            backfill(settings, path, source)
    backfill(settings, text, source)
    hour = _NOON.hour if kind == "TIMESTAMP" else 0
    assert query(settings, "SELECT hour(event_time) FROM events") == [(hour,)]


@pytest.mark.parametrize(("zone", "text"), [(None, "2025-07-01T12:00:00Z"), ("Europe/Berlin", "2025-07-01T12:00:00")])
def test_the_text_of_another_time_names_no_zone_that_it_has_not(tmp_path: Path, zone: str | None, text: str) -> None:
    """Without a zone it is in UTC, and events keep the text that they had."""
    path = tmp_path / "rows.parquet"
    pq.write_table(_TABLE, path)
    mapping = ColumnMapping("u", "day", action_type="A", metadata=(("seen", "at"),), time_zone=zone)
    ((event,),) = (table.to_pylist() for table in read_events(path, mapping))
    assert event["metadata"] == [("seen", text)]


@pytest.mark.parametrize("kind", [pa.timestamp("ns", "UTC"), pa.timestamp("us", "Asia/Tokyo")])
def test_a_time_with_a_zone_keeps_it(tmp_path: Path, kind: pa.DataType) -> None:
    """Whatever `time_zone` says."""
    path = tmp_path / "rows.arrow"
    noon = pa.array([_NOON.replace(tzinfo=UTC)], kind)
    pyarrow.feather.write_feather(pa.table({"u": ["a"], "at": noon}), path)
    mapping = ColumnMapping("u", "at", action_type="A", time_zone="America/New_York")
    assert [table["event_time"].to_pylist() for table in read_events(path, mapping)] == [[_NOON.replace(tzinfo=UTC)]]


@pytest.mark.slow
def test_the_int96_of_spark_is_an_instant(tmp_path: Path) -> None:
    """It cannot name its zone, UTC: `time_zone` does not shift it, and a SELECT needs none."""
    path = tmp_path / "rows.parquet"
    pq.write_table(_TABLE, path, use_deprecated_int96_timestamps=True)
    mapping = ColumnMapping("u", "at", action_type="A", time_zone="America/New_York")
    assert [table["event_time"].to_pylist() for table in read_events(path, mapping)] == [[_NOON.replace(tzinfo=UTC)]]
    settings = Settings(data_dir=tmp_path / "data")
    backfill(settings, path, _source(tmp_path, '"at"'))
    assert query(settings, "SELECT hour(event_time) FROM events") == [(_NOON.hour,)]
