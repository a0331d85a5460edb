"""The wire format of Protobuf, checked without decoding: which of many values `ptars` refuses, and where.

One compiled pass says of each value what is wrong with it: thousands of bad values cost no call and no Rust panic each.
It is lenient: what it passes, `ptars` may still refuse; what it refuses, `ptars` refuses too, or dies of (groups that
are nested too deep end the process). `tests/contract/test_wire.py` holds it to that.
"""
# pyright: reportAttributeAccessIssue=false, reportMissingParameterType=false
# (the functions of pyarrow.compute are made when it is imported; numba infers the types of a compiled loop)

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import int64, njit, uint64

MAX_GROUPS = 16_384
"""Groups inside one another; a value of no more bytes cannot hold more."""

_FAULTS = (
    "",
    "the value ends within a number",
    "a number has over ten bytes",
    "a field has the number 0",
    "a length runs past the end",
    "the value ends within a fixed field",
    "a field has a wire type that does not exist",
    "a group ends that did not begin",
    "the value ends within a group",
    f"groups are nested over {MAX_GROUPS} deep",
    "a text is not valid UTF-8",
)
_NUMBER_CUT, _NUMBER_LONG, _FIELD_0, _LENGTH, _FIXED, _WIRE_TYPE, _GROUP_END, _GROUP_CUT, _DEPTH, _UTF8 = range(1, 11)
_EVENT, _TIMESTAMP, _METADATA = 0, 4, 5
"""What is being scanned: the event, or the message in one of these fields of it."""


def find_faults(values: pa.Array) -> dict[int, str]:
    """Return by row what is wrong with a value (binary, no nulls) as a `karmalake.v1.Event`, and at which byte."""
    values = pc.fill_null(values, b"")
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    faults, places = np.zeros(len(values), np.uint8), np.zeros(len(values), np.int64)
    _scan_rows(bounds, content, faults, places)
    bad = np.flatnonzero(faults)
    found = zip(faults[bad].tolist(), places[bad].tolist(), strict=True)
    return {row: _sentence(fault, place) for row, (fault, place) in zip(bad.tolist(), found, strict=True)}


@lru_cache(maxsize=4_096)
def _sentence(fault: int, place: int) -> str:
    return f"{_FAULTS[fault]}, at byte {place}"


@njit(cache=True, nogil=True)
def _scan_rows(bounds, data, faults, places):
    for row in range(len(faults)):
        faults[row], place = _scan_event(data, bounds[row], bounds[row + 1])
        places[row] = place - bounds[row]


@njit(cache=True, nogil=True)
def _scan_event(data, start, end):
    """Return (fault, place) of the event in data[start:end]; the fault is 0 where there is none.

    A message within it is scanned by the same loop: `kind` is its field, and `outer` where the event ends then.
    """
    at, outer, kind, depth = start, end, _EVENT, 0
    while at < end or kind != _EVENT or depth:
        if at >= end:
            if depth:
                return _GROUP_CUT, at
            kind, end = _EVENT, outer
            continue
        begin = at
        key, at, fault = _number(data, at, end)
        if fault:
            return fault, begin
        number, wire_type = (key >> uint64(3)) & uint64(0xFFFFFFFF), key & uint64(7)
        first, at, fault = _content(data, at, end, wire_type)
        depth += (wire_type == 3) - (wire_type == 4)
        fault = _FIELD_0 if number == 0 else fault or _nesting(depth)
        if fault:
            return fault, begin
        if wire_type == 2 and not depth:
            if kind == _EVENT and _TIMESTAMP <= number <= _METADATA:
                kind, end, at = number, at, first
            elif _is_text(kind, number) and not is_utf8(data, first, at):
                return _UTF8, first
    return 0, end


@njit(inline="always")
def _nesting(depth):
    return _GROUP_END if depth < 0 else _DEPTH if depth > MAX_GROUPS else 0


@njit(inline="always")
def _content(data, at, end, wire_type):
    """Return (where it begins, where it ends, fault) of what stands behind a key; of a group nothing."""
    if wire_type == 0:
        _, after, fault = _number(data, at, end)
        return at, after, fault
    if wire_type == 2:
        return _length(data, at, end)
    if wire_type == 3 or wire_type == 4:  # noqa: PLR1714 - compiled
        return at, at, 0
    size = 8 if wire_type == 1 else 4 if wire_type == 5 else 0
    if not size:
        return at, at, _WIRE_TYPE
    return at, at + size, _FIXED if at + size > end else 0


@njit(inline="always")
def _number(data, at, end):
    """Return (number, where it ends, fault) of the varint at `at`."""
    number = uint64(0)
    for byte in range(10):
        if at >= end:
            return number, at, _NUMBER_CUT
        number |= uint64(data[at] & 0x7F) << uint64(7 * byte)
        at += 1
        if data[at - 1] < 0x80:
            return number, at, 0
    return number, at, _NUMBER_LONG


@njit(inline="always")
def _length(data, at, end):
    """Return (where it begins, where it ends, fault) of what stands behind the length at `at`."""
    length, first, fault = _number(data, at, end)
    if fault:
        return first, first, fault
    if length > uint64(end - first):
        return first, first, _LENGTH
    return first, first + int64(length), 0


@njit(inline="always")
def _is_text(kind, number):
    return (kind == _EVENT and number <= 3) or (kind == _METADATA and number <= 2)


@njit(cache=True, nogil=True)
def is_utf8(data, at, end):
    """Return whether data[at:end] is UTF-8 without surrogates and overlong forms."""
    while at < end:
        first = data[at]
        at += 1
        if first < 0x80:
            continue
        more = 1 if 0xC2 <= first <= 0xDF else 2 if 0xE0 <= first <= 0xEF else 3 if 0xF0 <= first <= 0xF4 else 0
        if more == 0 or at + more > end:
            return False
        low = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        high = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        if not low <= data[at] <= high:
            return False
        for byte in range(1, more):
            if not 0x80 <= data[at + byte] <= 0xBF:
                return False
        at += more
    return True
