"""Text to microseconds since 1970, exactly: through decimals, never through floats."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Literal

TimeUnit = Literal["s", "ms", "us", "iso"]

_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_CONTEXT = Context(prec=200, rounding=ROUND_FLOOR)
_MICROSECOND_DIGITS: Mapping[str, int] = {"s": 6, "ms": 3, "us": 0}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MICROSECOND = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST_MICROSECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def reader(unit: TimeUnit) -> Callable[[str], int]:
    """Return the function that reads a time in `unit` as microseconds since 1970-01-01 UTC.

    It cuts what is finer than a microsecond, takes an ISO 8601 time without a zone as UTC, and raises ValueError
    (its message completes "row 3: ...") for anything else, or outside the years 1 to 9999.
    """
    if unit == "iso":
        return _read_iso
    digits = _MICROSECOND_DIGITS[unit]
    return lambda text: _read_number(text, digits, unit)


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
