"""Scans of the Protobuf wire format without decoding: which values `ptars` rejects, and where, or misreads.

One compiled pass checks all values, so thousands of bad values do not cost a call and a Rust panic each. The scan is
lenient: `ptars` may reject a value that passes; a value that fails is rejected by `ptars` too, or crashes it (deeply
nested groups overflow the stack). `tests/contract/test_wire.py` verifies this.
"""
# pyright: reportAttributeAccessIssue=false, reportMissingParameterType=false
# (the functions of pyarrow.compute are created at import; numba infers the types of a compiled loop)

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import int64, njit, uint64

from pipelines.contract.buffers import borrow, bounds_and_bytes, word_at

MAX_GROUPS = 16_384
"""Nested groups; a value of this many bytes or fewer cannot exceed it."""

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
    "a string is not valid UTF-8",
)
_NUMBER_CUT, _NUMBER_LONG, _FIELD_0, _LENGTH, _FIXED, _WIRE_TYPE, _GROUP_END, _GROUP_CUT, _DEPTH, _UTF8 = range(1, 11)
_HIGH_BITS = uint64(0x8080808080808080)
"""The bits that no ASCII character has, in eight bytes."""
_EVENT, _TIMESTAMP, _METADATA = 0, 4, 5
"""The message being scanned: the event, or the message in one of these fields."""


def find_faults(values: pa.Array) -> dict[int, str]:
    """Return by row the error of each invalid `karmalake.v1.Event` in `values` (binary), with its byte offset."""
    values = pc.fill_null(values, b"")
    bounds, data = bounds_and_bytes(values)
    faults, positions = np.zeros(len(values), np.uint8), np.zeros(len(values), np.int64)
    _scan_rows(bounds, data, faults, positions)
    bad = np.flatnonzero(faults)
    found = zip(faults[bad].tolist(), positions[bad].tolist(), strict=True)
    return {row: _format(fault, position) for row, (fault, position) in zip(bad.tolist(), found, strict=True)}


def repeats_timestamp(values: pa.Array) -> np.ndarray:
    """Return by row whether an event in `values` (binary) has its timestamp in several parts: bool, shape (rows,).

    Of an invalid value, the part before the fault counts.
    """
    bounds, data = bounds_and_bytes(pc.fill_null(values, b""))
    repeated = np.zeros(len(values), bool)
    _find_repeated(bounds, data, repeated)
    return repeated


@njit(cache=True, nogil=True)
def _find_repeated(bounds, data, repeated):
    """Set the values data[bounds[row]:bounds[row + 1]] (uint8) that have several timestamps."""
    data = borrow(data)
    for row in range(len(repeated)):
        at, end, depth, fault, parts = bounds[row], bounds[row + 1], 0, 0, 0
        while at < end and not fault:
            key, at, fault = _number(data, at, end)
            if not fault:
                wire_type = key & uint64(7)
                _, at, fault = _content(data, at, end, wire_type)
                depth += (wire_type == 3) - (wire_type == 4)
                parts += depth == 0 and wire_type == 2 and key >> uint64(3) == _TIMESTAMP and not fault
        repeated[row] = parts > 1


@lru_cache(maxsize=4_096)
def _format(fault: int, position: int) -> str:
    return f"{_FAULTS[fault]}, at byte {position}"


@njit(cache=True, nogil=True)
def _scan_rows(bounds, data, faults, positions):
    """Scan each value data[bounds[row]:bounds[row + 1]]; set its fault (uint8, 0 is none) and position (int64)."""
    data = borrow(data)
    for row in range(len(faults)):
        faults[row], position = _scan_event(data, bounds[row], bounds[row + 1])
        positions[row] = position - bounds[row]


@njit(cache=True, nogil=True)
def _scan_event(data, start, end):
    """Return (fault, position) of the event in data[start:end] (uint8); a fault of 0 means valid.

    Nested messages are scanned by the same loop: `kind` is the field, and `outer` the end of the event.
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
    """Return (start, end, fault) of the content of a field after its key; a group tag has none."""
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
    """Return (value, end, fault) of the varint at `at`."""
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
    """Return (start, end, fault) of the length-delimited content at `at`."""
    length, first, fault = _number(data, at, end)
    if fault:
        return first, first, fault
    if length > uint64(end - first):
        return first, first, _LENGTH
    return first, first + int64(length), 0


@njit(inline="always")
def _is_text(kind, number):
    return (kind == _EVENT and number <= 3) or (kind == _METADATA and number <= 2)


@njit
def is_utf8(data, at, end):
    """Return whether data[at:end] (uint8) is UTF-8 without surrogates and overlong forms."""
    while at < end:
        while at + 8 <= end and not word_at(data, at) & _HIGH_BITS:
            at += 8
        if at == end:
            break
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
