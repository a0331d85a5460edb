"""Text to microseconds since 1970, exactly: through decimals, never through floats; and the times of records."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import TIMESTAMP

pc: Any = compute  # its functions are made at import, where pyright does not see them

TimeUnit = Literal["s", "ms", "us", "iso"]

_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_CONTEXT = Context(prec=200, rounding=ROUND_FLOOR)
_MICROSECOND_DIGITS: Mapping[str, int] = {"s": 6, "ms": 3, "us": 0}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MICROSECOND = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST_MICROSECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_FIRST_BUS_MS = (datetime(2000, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
# A day before the last moment of a datetime, so that no reader's time zone takes it past that.
_LAST_BUS_MS = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


def bus_times(milliseconds: "np.ndarray | Sequence[int | None]") -> pa.Array:
    """Return record times in milliseconds since 1970 as TIMESTAMP, null where one is no valid time.

    Valid is 2000-01-01 to 9999-12-31. Anything else is absent (-1), unset (0) or in another unit: a producer writes
    what it likes. An array has to be of int64; a sequence may hold integers of any size.
    """
    if not isinstance(milliseconds, np.ndarray):
        bounded = (-1 if time is None or not _FIRST_BUS_MS <= time <= _LAST_BUS_MS else time for time in milliseconds)
        milliseconds = np.fromiter(bounded, np.int64, len(milliseconds))
    valid = (milliseconds >= _FIRST_BUS_MS) & (milliseconds <= _LAST_BUS_MS)
    if valid.all():
        return pa.array(milliseconds * 1000).view(TIMESTAMP)
    return pa.array(np.where(valid, milliseconds, 0) * 1000, mask=~valid).view(TIMESTAMP)


def read_times(texts: pa.Array, unit: TimeUnit) -> tuple[pa.Array, dict[int, str]]:
    """Return texts in `unit` as TIMESTAMP, null where one is null or cannot be read, and by row what is wrong with it.

    What is finer than a microsecond is cut; an ISO 8601 time without a zone is UTC; only the years 1 to 9999 are read.
    """
    try:
        return _read_in_bulk(texts, unit), {}
    except pa.ArrowInvalid:
        return _read_one_by_one(texts, unit)


def _read_in_bulk(texts: pa.Array, unit: TimeUnit) -> pa.Array:
    """Read what is written plainly; raises ArrowInvalid for anything that wants a closer look."""
    if unit == "iso":
        return texts.cast(TIMESTAMP)
    numbers = texts.cast(pa.decimal128(28, 9))
    microseconds = pc.floor(pc.multiply(numbers, pa.scalar(10 ** _MICROSECOND_DIGITS[unit], pa.decimal128(7, 0))))
    whole = microseconds.cast(pa.int64())
    bounds = pc.min_max(whole)
    if len(whole) and not _FIRST_MICROSECOND <= bounds["min"].as_py() <= bounds["max"].as_py() <= _LAST_MICROSECOND:
        raise pa.ArrowInvalid("a time is out of range")
    return whole.cast(TIMESTAMP)


def _read_one_by_one(texts: pa.Array, unit: TimeUnit) -> tuple[pa.Array, dict[int, str]]:
    times: list[int | None] = []
    errors: dict[int, str] = {}
    for row, text in enumerate(texts.to_pylist()):
        try:
            times.append(None if text is None else _read(text, unit))
        except ValueError as error:
            times.append(None)
            errors[row] = str(error)
    return pa.array(times, pa.int64()).cast(TIMESTAMP), errors


def _read(text: str, unit: TimeUnit) -> int:
    return _read_iso(text) if unit == "iso" else _read_number(text, _MICROSECOND_DIGITS[unit], unit)


def _read_number(text: str, digits: int, unit: str) -> int:
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a time in {unit}")
    microseconds = int(_CONTEXT.to_integral_value(_CONTEXT.scaleb(Decimal(text.strip()), digits)))
    if not _FIRST_MICROSECOND <= microseconds <= _LAST_MICROSECOND:
        raise ValueError(f"{text!r} as a time in {unit} is outside the years 1 to 9999; is the unit another one?")
    return microseconds


def _read_iso(text: str) -> int:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not an ISO 8601 time") from None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)
