"""Exact parsing of times to microseconds since 1970, with decimals instead of floats, and validation of bus times."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.contract.buffers import bounds_and_bytes
from pipelines.contract.iso_times import parse_common_times
from pipelines.contract.schema import TIMESTAMP

pc: Any = compute  # its functions are created at import, where pyright does not see them

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]

_MAX_QUOTED_CHARS = 80
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_BULK_NUMBER = r"^[+-]?[0-9]{1,19}(?:\.[0-9]{0,9})?$"
"""What Arrow parses: more digits wrap around in it, and an exponent such as -999999999 ends the process."""
_CONTEXT = Context(prec=200, rounding=ROUND_FLOOR)
_MICROSECOND_DIGITS: Mapping[str, int] = {"s": 6, "ms": 3, "us": 0, "ns": -3}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MICROSECOND = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
LAST_MICROSECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_FIRST_BUS_MS = (datetime(2000, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
# A day before the end of the range of datetime, so that no time zone of a reader exceeds it.
_LAST_BUS_MS = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


def bus_times(milliseconds: "np.ndarray | Sequence[int | None]") -> pa.Array:
    """Return record timestamps in milliseconds since 1970 as a TIMESTAMP array, null where one is invalid.

    Valid times are 2000-01-01 to 9999-12-31. Others are absent (-1), unset (0) or in another unit: a producer may write
    any number. An array must have dtype int64; a sequence may contain integers of any size.
    """
    if not isinstance(milliseconds, np.ndarray):
        bounded = (-1 if time is None or not _FIRST_BUS_MS <= time <= _LAST_BUS_MS else time for time in milliseconds)
        milliseconds = np.fromiter(bounded, np.int64, len(milliseconds))
    valid = (milliseconds >= _FIRST_BUS_MS) & (milliseconds <= _LAST_BUS_MS)
    if valid.all():
        return pa.array(milliseconds * 1000).view(TIMESTAMP)
    return pa.array(np.where(valid, milliseconds, 0) * 1000, mask=~valid).view(TIMESTAMP)


def read_times(texts: pa.Array, unit: TimeUnit) -> tuple[pa.Array, dict[int, str]]:
    """Parse a string array of times in `unit`; return a TIMESTAMP array and the error message by row.

    The result is null where the text is null or invalid. Times are truncated to microseconds; an ISO 8601 time without
    a zone is UTC; valid years are 1 to 9999.
    """
    if unit == "iso":
        return _read_iso_times(texts)
    if unit == "ns" or not pc.all(pc.match_substring_regex(texts, _BULK_NUMBER), min_count=0).as_py():
        return _parse_one_by_one(texts, unit)
    try:
        return _parse_in_bulk(texts, unit), {}
    except pa.ArrowInvalid:  # out of range
        return _parse_one_by_one(texts, unit)


def _read_iso_times(texts: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Parse common forms by a compiled loop, and others one by one."""
    times, parsed = np.empty(len(texts), np.int64), np.empty(len(texts), bool)
    parse_common_times(*bounds_and_bytes(texts.cast(pa.string())), times, parsed)
    parsed &= texts.is_valid().to_numpy(zero_copy_only=False)
    common = pa.array(times).view(TIMESTAMP)
    if parsed.all():
        return common, {}
    rows = np.flatnonzero(~parsed)
    others, errors = _parse_one_by_one(texts.take(pa.array(rows)), "iso")
    return pc.replace_with_mask(common, pa.array(~parsed), others), {
        int(rows[row]): error for row, error in errors.items()
    }


def _parse_in_bulk(texts: pa.Array, unit: TimeUnit) -> pa.Array:
    """Parse numbers of the form `_BULK_NUMBER`; raises ArrowInvalid if one is out of range."""
    numbers = texts.cast(pa.decimal128(28, 9))
    factor = pa.scalar(10 ** _MICROSECOND_DIGITS[unit], pa.decimal128(7, 0))
    whole = pc.floor(pc.multiply(numbers, factor)).cast(pa.int64())
    bounds = pc.min_max(whole)
    if bounds["min"].is_valid and not (
        FIRST_MICROSECOND <= bounds["min"].as_py() <= bounds["max"].as_py() <= LAST_MICROSECOND
    ):
        raise pa.ArrowInvalid("a time is out of range")
    return whole.cast(TIMESTAMP)


def _parse_one_by_one(texts: pa.Array, unit: TimeUnit) -> tuple[pa.Array, dict[int, str]]:
    times: list[int | None] = []
    errors: dict[int, str] = {}
    for row, text in enumerate(texts.to_pylist()):
        try:
            times.append(None if text is None else _parse(text, unit))
        except (ValueError, OverflowError) as error:
            times.append(None)
            errors[row] = str(error)
    return pa.array(times, pa.int64()).cast(TIMESTAMP), errors


def _parse(text: str, unit: TimeUnit) -> int:
    return _parse_iso(text) if unit == "iso" else _parse_number(text, _MICROSECOND_DIGITS[unit], unit)


def _parse_number(text: str, digits: int, unit: str) -> int:
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{_quote(text)} is not a time in {unit}")
    microseconds = int(_CONTEXT.to_integral_value(_CONTEXT.scaleb(Decimal(text.strip()), digits)))
    if not FIRST_MICROSECOND <= microseconds <= LAST_MICROSECOND:
        raise ValueError(f"{_quote(text)} as a time in {unit} is outside the years 1 to 9999: check the unit")
    return microseconds


def _parse_iso(text: str) -> int:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{_quote(text)} is not an ISO 8601 time") from None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    microseconds = (aware - _EPOCH) // timedelta(microseconds=1)
    if not FIRST_MICROSECOND <= microseconds <= LAST_MICROSECOND:  # because of its offset
        raise ValueError(f"{_quote(text)} is outside the years 1 to 9999")
    return microseconds


def _quote(text: str) -> str:
    return repr(text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}...")
