"""Times as files write them: the units of the contract, and formats and zones that the caller names."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Literal

import duckdb
import pyarrow as pa
from pyarrow import compute

from pipelines.boundary.database import connect
from pipelines.boundary.time_zones import is_time_zone
from pipelines.contract.schema import TIMESTAMP
from pipelines.contract.times import FIRST_MICROSECOND, LAST_MICROSECOND, read_times
from pipelines.errors import UsageError

pc: Any = compute  # its functions are generated at import, invisible to pyright
FileTimeUnit = Literal["s", "ms", "us", "ns", "iso", "rfc2822"]
_HAS_ZONE = r"(?:Z|[-+][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?)\s*$"
_ENDS_WITH_CLOCK = r"\s[0-9]{1,2}[:.][0-9]{2}(?:[:.][0-9]{2})?\s*$"
_NAMED_UTC = r"^([0-9].*) (?:UTC|GMT)$"
_UTC_NAMES = (" UTC", " GMT")
_HAS_TIME = r"[0-9]:[0-9]"
_ZONES_IN_FORMAT = ("%z", "%Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_QUOTED_CHARS = 80
_DATES = (
    *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d"),
    *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d %b %Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%d-%b-%Y"),
)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_FORMATS = [f"{date}{clock}" for date in _DATES for clock in _CLOCKS]
"""What a time that is not ISO 8601 is compared with, for the message."""
_UNITS: dict[str, FileTimeUnit] = {
    r"[0-9]{10}(\.[0-9]+)?": "s",
    "[0-9]{13}": "ms",
    "[0-9]{16}": "us",
    "[0-9]{19}": "ns",
    "[A-Z][a-z]{2}, [0-9]{1,2} [A-Z][a-z]{2} [0-9]{4} .*": "rfc2822",
}
_SERIAL = r"[1-9][0-9]{4}(\.[0-9]+)?"
"""Days since 1899-12-30 of the years 1927 to 2173, as a spreadsheet exports a date that it does not show as one."""
_MAX_GUESSED_ROWS = 100
_PARSED = "SELECT epoch_us(try_strptime(trim(texts), $format)) AS time FROM given"


def check_time_options(time_format: str | None, time_zone: str | None) -> None:
    """Raise UsageError for a format or a zone that does not exist."""
    if time_zone is not None and not is_time_zone(time_zone):
        raise UsageError(f"{time_zone!r} is not a time zone: give a name such as Europe/Berlin or UTC")
    if time_format is not None:
        try:
            _parse(pa.array([""]), time_format)
        except duckdb.Error as error:
            raise UsageError(f"{time_format!r} is not a time format: {str(error).splitlines()[0]}") from None


def read_file_times(
    texts: pa.Array, unit: FileTimeUnit, time_format: str | None, time_zone: str | None
) -> tuple[pa.Array, dict[int, str]]:
    """Parse a string array of times; return a TIMESTAMP array and the error message by row, like `read_times`.

    A null text is a null time. `time_format` has the names of strptime; `time_zone` applies to times that name none, as
    in `zoned_times`.
    """
    if time_format is not None:
        return _read_formatted(texts, time_format, time_zone)
    if unit == "rfc2822":
        return _read_rfc2822(texts, time_zone)
    if unit != "iso":
        return read_times(texts, unit)
    if any(pc.any(pc.ends_with(texts, name)).as_py() for name in _UTC_NAMES):
        texts = pc.replace_substring_regex(texts, pattern=_NAMED_UTC, replacement=r"\1Z")
    times, errors = read_times(texts, unit)
    errors |= {
        row: f"{errors[row]}: {remedy}" for row, remedy in _remedies(texts, [*errors][:_MAX_GUESSED_ROWS]).items()
    }
    if time_zone is None:
        return times, errors
    zoned = pc.and_(pc.match_substring_regex(texts, _HAS_ZONE), pc.match_substring_regex(texts, _HAS_TIME))
    return pc.if_else(zoned, times, _in_zone(times, time_zone)), errors


def zoned_times(times: pa.Array, time_zone: str | None) -> pa.Array:
    """Return typed times and dates as a TIMESTAMP array; those without a zone are in `time_zone`, None: in UTC.

    A time that occurs twice when clocks are set back is the first one. A time that is skipped when they are set forward
    is later by the gap, as if they had not been set yet: skipped times stay distinct and in order. This is `fold=0` of
    PEP 495. Times beyond the years 1 to 9999 are not shifted: the contract rejects them, and none may wrap.
    """
    if pa.types.is_timestamp(times.type) and times.type.tz is not None:
        return times.cast(TIMESTAMP)
    naive = times.cast(pa.timestamp("us"))
    if time_zone is None:
        return naive.cast(TIMESTAMP)
    # In a gap, `near` is just before it: the offset there is the one that still holds.
    near = pc.assume_timezone(naive, time_zone, ambiguous="earliest", nonexistent="earliest")
    offset = pc.subtract(pc.local_timestamp(near).cast(pa.int64()), near.cast(pa.int64()))
    counts = naive.cast(pa.int64())
    is_in_calendar = pc.and_(pc.greater_equal(counts, FIRST_MICROSECOND), pc.less_equal(counts, LAST_MICROSECOND))
    return pc.if_else(is_in_calendar, pc.subtract(counts, offset), counts).cast(TIMESTAMP)


def _remedies(texts: pa.Array, rows: list[int]) -> dict[int, str]:
    """Return by row the options that read its time, which is not ISO 8601: those that read most of the rows."""
    given = {row: texts[row].as_py().strip() for row in rows}
    options = {f"--time-unit {unit}": partial(re.fullmatch, form) for form, unit in _UNITS.items()}
    options |= {f"--time-format '{each}'": partial(_has_format, each) for each in _FORMATS}
    read = {option: [row for row, text in given.items() if is_one(text)] for option, is_one in options.items()}
    most = max(map(len, read.values()))
    best = [option for option, found in read.items() if found and len(found) == most]
    if not best:
        days = [row for row, text in given.items() if re.fullmatch(_SERIAL, text)]
        return dict.fromkeys(days, "a spreadsheet counts days so: format the column as dates there, and save it again")
    key = "time_unit" if "unit" in best[0] else "time_format"
    return dict.fromkeys(read[best[0]], f"give {' or '.join(best)} (of a source or the settings: {key})")


def _has_format(time_format: str, text: str) -> bool:
    try:
        datetime.strptime(text, time_format)  # noqa: DTZ007 - only whether it has the format
    except ValueError:
        return False
    return True


def _read_formatted(texts: pa.Array, time_format: str, time_zone: str | None) -> tuple[pa.Array, dict[int, str]]:
    times = _parse(texts, time_format)
    if time_zone is not None and not any(name in time_format for name in _ZONES_IN_FORMAT):
        times = _in_zone(times, time_zone)
    wrong = pc.indices_nonzero(pc.and_(pc.is_null(times), pc.is_valid(texts))).to_pylist()
    return times, {row: f"{_quote(texts[row].as_py())} is not a time in the format {time_format!r}" for row in wrong}


def _parse(texts: pa.Array, time_format: str) -> pa.Array:
    with connect() as connection:
        given = pa.table({"texts": texts})
        connection.register("given", given)
        found = connection.sql(_PARSED, params={"format": time_format}).to_arrow_table()
    return found["time"].combine_chunks().cast(pa.int64()).cast(TIMESTAMP)


def _in_zone(times: pa.Array, time_zone: str) -> pa.Array:
    """Return times that were read as UTC as those of a zone."""
    return zoned_times(times.cast(pa.int64()).cast(pa.timestamp("us")), time_zone)


def _read_rfc2822(texts: pa.Array, time_zone: str | None) -> tuple[pa.Array, dict[int, str]]:
    counts: list[int | None] = []
    errors: dict[int, str] = {}
    for row, text in enumerate(texts.to_pylist()):
        if text is None:
            counts.append(None)
            continue
        try:
            time = parsedate_to_datetime(text)
            counts.append(((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1))
        except (ValueError, OverflowError, TypeError, IndexError):
            counts.append(None)
            errors[row] = f"{_quote(text)} is not a time as in mail (Mon, 09 Oct 2006 18:21:51 +0000)"
    times = pa.array(counts, pa.int64()).cast(TIMESTAMP)
    if time_zone is None:
        return times, errors
    return pc.if_else(pc.match_substring_regex(texts, _ENDS_WITH_CLOCK), _in_zone(times, time_zone), times), errors


def _quote(text: str) -> str:
    return repr(text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}...")
