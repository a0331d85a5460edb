"""Times without a zone mean one instant, whatever the format and the kind of mapping that reads them."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Literal
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from pipelines.mapping.mapper import Mapper, MapperConfig
from pipelines.mapping.values import ValueSchema
from pipelines.sources.times import read_file_times, zoned_times
from tests.mapping.sources import records

_CHANGES = [
    ("Europe/Berlin", "2025-03-30"),
    ("Europe/Berlin", "2025-10-26"),
    ("America/New_York", "2025-03-09"),
    ("America/New_York", "2025-11-02"),
    ("Australia/Lord_Howe", "2025-04-06"),
    ("Australia/Lord_Howe", "2025-10-05"),
    ("Pacific/Apia", "2011-12-30"),
]
"""Zones, and days on which clocks are set forward or back: by an hour, half an hour, and a whole day."""


def _around(day: str) -> list[datetime]:
    """Return the times of three days, ten minutes apart."""
    start = datetime.fromisoformat(day) - timedelta(days=1)
    return [start + timedelta(minutes=10 * step) for step in range(3 * 144)]


def _expected(times: list[datetime], zone: str) -> list[datetime]:
    """Return the instants by the rule of PEP 495, which the standard library has."""
    return [time.replace(tzinfo=ZoneInfo(zone), fold=0).astimezone(UTC) for time in times]


def _records(times: list[datetime]) -> pa.Table:
    """Return records of a topic that have these times."""
    found = records([json.dumps({"at": time.isoformat()}).encode() for time in times])
    headers = pa.nulls(len(times), pa.map_(pa.string(), pa.binary()))
    return found.set_column(found.schema.get_field_index("headers"), "headers", headers)


@pytest.mark.parametrize(("zone", "day"), _CHANGES)
def test_plain_fields_and_a_select_agree_on_days_of_change(zone: str, day: str) -> None:
    """A time that occurs twice is the first one, a skipped time is later by the gap, and no two become one."""
    times = _around(day)
    expected = _expected(times, zone)
    texts: dict[tuple[Literal["iso", "rfc2822"], str | None], list[str]] = {
        ("iso", None): [time.isoformat(" ") for time in times],
        ("iso", "%d.%m.%Y %H:%M"): [f"{time:%d.%m.%Y %H:%M}" for time in times],
        ("rfc2822", None): [format_datetime(time).removesuffix(" -0000") for time in times],
    }
    for (unit, form), given in texts.items():
        assert read_file_times(pa.array(given), unit, form, zone)[0].to_pylist() == expected, (unit, form)
    for kind in (pa.timestamp("us"), pa.timestamp("ns")):
        assert zoned_times(pa.array(times, kind), zone).to_pylist() == expected
    select = "SELECT 'u' AS user_id, 'A' AS action_type, moment AS timestamp FROM record"
    for kind in ("VARCHAR", "TIMESTAMP", "TIMESTAMP_NS"):
        mapper = Mapper(MapperConfig(select, (("moment", "$.at", kind),), time_zone=zone))
        mapped = mapper.map(_records(times), ValueSchema("json"))
        assert (mapped.events["event_time"].to_pylist(), mapped.errors) == (expected, {}), kind


def test_skipped_times_keep_their_order() -> None:
    """Once all times in the gap were its end."""
    times = [datetime.fromisoformat(f"2025-03-30 02:{minute:02}") for minute in range(60)]
    found = zoned_times(pa.array(times), "Europe/Berlin").to_pylist()
    assert found == [datetime(2025, 3, 30, 1, minute, tzinfo=UTC) for minute in range(60)]


def test_mail_without_an_offset_is_of_the_zone() -> None:
    """But -0000 says UTC, and so does an unknown name."""
    at = "Tue, 01 Jul 2025 12:00:00"
    texts = pa.array([at, f"{at} -0000", f"{at} GMT", f"{at} +0400", f"{at} FOO", None])
    times, errors = read_file_times(texts, "rfc2822", None, "Europe/Berlin")
    assert errors == {}
    assert [time and time.hour for time in times.to_pylist()] == [10, 12, 12, 8, 12, None]


@pytest.mark.parametrize("count", [-(2**63), -(2**62), 2**62, 2**63 - 1])
def test_a_time_beyond_the_calendar_is_not_shifted(count: int) -> None:
    """Such as the infinity of DuckDB: it does not wrap into the years of events."""
    times = zoned_times(pa.array([count, None], pa.timestamp("us")), "America/New_York")
    assert times.cast(pa.int64()).to_pylist() == [count, None]
