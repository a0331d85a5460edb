"""A compiled parser for the common forms of ISO 8601 times; `times.py` parses the others.

The forms are those that producers write: 2026-01-31T12:00:00, with a T or a space, with a fraction of any number of
digits or none, and with Z, an offset like +01:00, +0100 or +01, or neither, which means UTC.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

import numpy as np
from numba import njit

from pipelines.contract.buffers import borrow

_ZERO, _NINE = b"09"
_MINUTE_US = 60_000_000
_DAY_MINUTES = 24 * 60
_BEFORE_MONTH = np.array([0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])
"""The days of a year before each month, by its number, if February has 28."""
_EPOCH_DAY = 719_162
"""The days from 0001-01-01 to 1970-01-01."""
_NO_NUMBER = -1_000_000
"""What stands for digits that are missing: no sum with it is valid."""


@njit(cache=True, nogil=True)
def parse_common_times(bounds, data, times, parsed):
    """Parse each text data[bounds[row]:bounds[row + 1]] (uint8) of a common form, within the years 1 to 9999.

    Sets `times` (int64), in microseconds since 1970, truncated, and `parsed` (bool).
    """
    data = borrow(data)
    first, last = -_EPOCH_DAY * _DAY_MINUTES * _MINUTE_US, (_days(10_000, 1) * _DAY_MINUTES) * _MINUTE_US - 1
    for row in range(len(times)):
        times[row], parsed[row] = _parse(data, np.int64(bounds[row]), np.int64(bounds[row + 1]))
        parsed[row] &= first <= times[row] <= last


@njit
def _parse(data, at, end):
    """Return (microseconds since 1970, whether the text has a common form)."""
    if end - at < 19 or not _has_separators(data, at):
        return 0, False
    year = _number(data, at, 2) * 100 + _number(data, at + 2, 2)
    month, day = _number(data, at + 5, 2), _number(data, at + 8, 2)
    hour, minute, second = _number(data, at + 11, 2), _number(data, at + 14, 2), _number(data, at + 17, 2)
    fraction, at = _fraction(data, at + 19, end)
    offset, valid = _offset(data, at, end)
    valid &= year >= 1 and 1 <= month <= 12 and 1 <= day <= _days_of(year, month)
    if not (valid and 0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 59):
        return 0, False
    minutes = (_days(year, month) + day - 1) * _DAY_MINUTES + hour * 60 + minute - offset
    return minutes * _MINUTE_US + second * 1_000_000 + fraction, True


@njit(inline="always")
def _has_separators(data, at):
    """Return whether the text has the separators of 2026-01-31T12:00:00."""
    dashes = data[at + 4] == ord("-") and data[at + 7] == ord("-")
    colons = data[at + 13] == ord(":") and data[at + 16] == ord(":")
    return dashes and colons and (data[at + 10] == ord("T") or data[at + 10] == ord(" "))


@njit(inline="always")
def _number(data, at, digits):
    """Return the number that the digits are, or a negative one."""
    number = 0
    for index in range(at, at + digits):
        digit = np.int64(data[index]) - _ZERO
        number = number * 10 + (digit if 0 <= digit <= 9 else _NO_NUMBER)
    return number


@njit(inline="always")
def _fraction(data, at, end):
    """Return the microseconds of a fraction, if there is one, and the position after it; an empty one is left over."""
    if at + 1 >= end or data[at] != ord(".") or not _ZERO <= data[at + 1] <= _NINE:
        return 0, at
    at, fraction, unit = at + 1, 0, 100_000
    while at < end and _ZERO <= data[at] <= _NINE:
        fraction += (data[at] - _ZERO) * unit
        at, unit = at + 1, unit // 10
    return fraction, at


@njit(inline="always")
def _offset(data, at, end):
    """Return the minutes of the offset that ends the text, and whether it is valid."""
    if at == end:
        return 0, True
    if data[at] == ord("Z"):
        return 0, at + 1 == end
    size = end - at
    colon = size == 6 and data[at + 3] == ord(":")
    if not (colon or size in (3, 5)) or not (data[at] == ord("+") or data[at] == ord("-")):
        return 0, False
    hours, minutes = _number(data, at + 1, 2), (_number(data, at + 3 + colon, 2) if size > 3 else 0)
    offset = hours * 60 + minutes
    return (offset if data[at] == ord("+") else -offset), 0 <= hours <= 23 and 0 <= minutes <= 59


@njit(inline="always")
def _is_leap(year):
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


@njit(inline="always")
def _days_of(year, month):
    """Return the days of a month."""
    return _BEFORE_MONTH[month + 1] - _BEFORE_MONTH[month] + (month == 2 and _is_leap(year))


@njit(inline="always")
def _days(year, month):
    """Return the days from 1970-01-01 to the first of a month."""
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - _EPOCH_DAY
    return days + _BEFORE_MONTH[month] + (month > 2 and _is_leap(year))
