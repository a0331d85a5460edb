"""JSON values of foreign topics, checked and made exact.

DuckDB reads a number with a fraction as a double, which loses digits (1.10 becomes 1.1). So a number that is not an
integer of at most 18 digits becomes a JSON string of exactly its digits: `->>` returns them, a CAST reads them. What is
JSON is decided by `contract/json_grammar.py`, which also bounds the depth.
"""
# pyright: reportAttributeAccessIssue=false, reportMissingParameterType=false
# (the functions of pyarrow.compute are created at import; numba infers the types of a compiled loop)

import numpy as np
import pyarrow as pa
from numba import njit

from pipelines.contract.buffers import borrow, bounds_and_bytes, byte_at
from pipelines.contract.json_grammar import (
    MAX_JSON_DEPTH,
    QUOTE,
    TRAILING,
    UTF8,
    describe_fault,
    fault_at,
    shift_fault,
    skip_space,
    skip_string,
    skip_value,
)
from pipelines.contract.json_scan import is_utf8

_MINUS, _ZERO, _NINE, _POINT, _PLUS, _SMALL_E, _CAPITAL_E = b"-09.+eE"
_MAX_DIGITS = 18
_BYTES_PER_NUMBER = 2


def exact_json(values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Return a binary array of JSON values as text with exact numbers, and by row why one is not JSON (then null)."""
    bounds, data = bounds_and_bytes(values)
    faults, quoted = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64)
    _check(data, bounds, np.zeros(MAX_JSON_DEPTH + 1, np.uint8), faults, quoted)
    if not faults.any() and not quoted.any():
        return values.view(pa.string()), {}
    sizes = np.where(faults == 0, np.diff(bounds) + _BYTES_PER_NUMBER * quoted, 0)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    if ends[-1] >= 2**31:
        raise OverflowError("the values of a batch are too long")
    text, to = np.empty(max(1, int(ends[-1])), np.uint8), ends.astype(np.int32)
    _copy(data, bounds, faults, to, text)
    rows = np.flatnonzero(faults)
    valid = pa.array(faults == 0).buffers()[1]
    found = pa.StringArray.from_buffers(len(values), pa.py_buffer(to), pa.py_buffer(text), valid, len(rows))
    return found, {row: describe_fault(int(faults[row])).replace("a JSON object", "JSON") for row in rows.tolist()}


@njit(cache=True, nogil=True)
def _check(data, bounds, closings, faults, quoted):
    """Set the fault (0 for none) of each value, and how many of its numbers become strings."""
    data, closings = borrow(data), borrow(closings)
    for row in range(len(faults)):
        start, end = np.int64(bounds[row]), np.int64(bounds[row + 1])
        at = skip_value(data, start, end, 0, closings) if is_utf8(data, start, end) else fault_at(start, UTF8)
        if at >= 0:
            at = skip_space(data, at, end)
            at = fault_at(at, TRAILING) if at < end else 0
        faults[row] = shift_fault(at, start)
        if at == 0:
            quoted[row] = _count(data, start, end)


@njit
def _starts_number(byte):
    return byte == _MINUS or _ZERO <= byte <= _NINE


@njit
def _number_end(data, at, end):
    """Return the end of the number at `at`, and whether it is an integer of at most 18 digits, not -0."""
    start, is_plain = at, True
    while at < end:
        byte = byte_at(data, at)
        if byte == _POINT or byte == _SMALL_E or byte == _CAPITAL_E or byte == _PLUS:  # noqa: PLR1714, SIM109 - compiled
            is_plain = False
        elif not _starts_number(byte):
            break
        at += 1
    negative = byte_at(data, start) == _MINUS
    is_plain &= at - start - negative <= _MAX_DIGITS and not (negative and byte_at(data, start + 1) == _ZERO)
    return at, is_plain


@njit
def _count(data, at, end):
    count = 0
    while at < end:
        byte = byte_at(data, at)
        if byte == QUOTE:
            at = skip_string(data, at + 1, end)
        elif _starts_number(byte):
            at, is_plain = _number_end(data, at, end)
            count += not is_plain
        else:
            at += 1
    return count


@njit(cache=True, nogil=True)
def _copy(data, bounds, faults, to, text):
    data, text = borrow(data), borrow(text)
    for row in range(len(faults)):
        if faults[row] == 0:
            _copy_value(data, np.int64(bounds[row]), np.int64(bounds[row + 1]), text, np.int64(to[row]))


@njit
def _copy_value(data, at, end, text, to):
    while at < end:
        byte, after, is_plain = byte_at(data, at), at + 1, True
        if byte == QUOTE:
            after = skip_string(data, at + 1, end)
        elif _starts_number(byte):
            after, is_plain = _number_end(data, at, end)
        if not is_plain:
            text[to], to = QUOTE, to + 1
        for place in range(at, after):
            text[to], to = byte_at(data, place), to + 1
        if not is_plain:
            text[to], to = QUOTE, to + 1
        at = after
