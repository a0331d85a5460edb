"""Text to microseconds since 1970, exactly: through decimals, never through floats."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Literal

import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import TIMESTAMP

pc: Any = compute  # its functions are made at import, where pyright does not see them

TimeUnit = Literal["s", "ms", "us", "iso"]

_LONGEST_SHOWN = 80
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_CONTEXT = Context(prec=200, rounding=ROUND_FLOOR)
_MICROSECOND_DIGITS: Mapping[str, int] = {"s": 6, "ms": 3, "us": 0}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MICROSECOND = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST_MICROSECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


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
    whole = texts.cast(TIMESTAMP).cast(pa.int64()) if unit == "iso" else _whole_microseconds(texts, unit)
    bounds = pc.min_max(whole)
    if bounds["min"].is_valid and not (
        _FIRST_MICROSECOND <= bounds["min"].as_py() <= bounds["max"].as_py() <= _LAST_MICROSECOND
    ):
        raise pa.ArrowInvalid("a time is out of range")
    return whole.cast(TIMESTAMP)


def _whole_microseconds(texts: pa.Array, unit: TimeUnit) -> pa.Array:
    numbers = texts.cast(pa.decimal128(28, 9))
    microseconds = pc.floor(pc.multiply(numbers, pa.scalar(10 ** _MICROSECOND_DIGITS[unit], pa.decimal128(7, 0))))
    return microseconds.cast(pa.int64())


def _read_one_by_one(texts: pa.Array, unit: TimeUnit) -> tuple[pa.Array, dict[int, str]]:
    times: list[int | None] = []
    errors: dict[int, str] = {}
    for row, text in enumerate(texts.to_pylist()):
        try:
            times.append(None if text is None else _read(text, unit))
        except (ValueError, OverflowError) as error:
            times.append(None)
            errors[row] = str(error)
    return pa.array(times, pa.int64()).cast(TIMESTAMP), errors


def _read(text: str, unit: TimeUnit) -> int:
    return _read_iso(text) if unit == "iso" else _read_number(text, _MICROSECOND_DIGITS[unit], unit)


def _read_number(text: str, digits: int, unit: str) -> int:
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{_shown(text)} is not a time in {unit}")
    microseconds = int(_CONTEXT.to_integral_value(_CONTEXT.scaleb(Decimal(text.strip()), digits)))
    if not _FIRST_MICROSECOND <= microseconds <= _LAST_MICROSECOND:
        raise ValueError(f"{_shown(text)} as a time in {unit} is outside the years 1 to 9999; is the unit another one?")
    return microseconds


def _read_iso(text: str) -> int:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{_shown(text)} is not an ISO 8601 time") from None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    microseconds = (aware - _EPOCH) // timedelta(microseconds=1)
    if not _FIRST_MICROSECOND <= microseconds <= _LAST_MICROSECOND:  # by its offset
        raise ValueError(f"{_shown(text)} is outside the years 1 to 9999")
    return microseconds


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
