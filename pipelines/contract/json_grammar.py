"""Validation of JSON syntax (RFC 8259) before parsing: one compiled pass finds the first error in each value.

DuckDB accepts more than JSON (trailing commas, NaN, Infinity), other parsers have other extensions, and the supported
nesting depth varies. This module defines the accepted language: strict JSON in UTF-8, without a byte order mark and
lone surrogates, nested at most MAX_JSON_DEPTH levels deep. Numbers may have any size, since none is parsed.
`pipelines/operate/audit_values.py` implements the same rules independently, and `tests/operate/test_audit_values.py`
compares both.
"""
# pyright: reportAttributeAccessIssue=false, reportMissingParameterType=false
# (the functions of pyarrow.compute are created at import; numba infers the types of a compiled loop)

import numpy as np
import pyarrow as pa
from numba import njit

from pipelines.contract.wire import is_utf8

MAX_JSON_DEPTH = 512
"""Nested objects and arrays, including the object of the event."""

_FAULTS = (
    "",
    "it is not UTF-8",
    "it is not a JSON object: it ends too early",
    "it is not a JSON object: data follows it",
    "it is not a JSON object: a value is expected",
    "it is not a JSON object: the name of a field is expected",
    "it is not a JSON object: a colon is expected",
    "it is not a JSON object: a comma or the end of an object or array is expected",
    "it is not a JSON object: a comma stands before the end of an object or array",
    "it is not a JSON object: a string contains a control character",
    "it is not a JSON object: a string contains an invalid escape",
    "it is not a JSON object: a string contains a lone surrogate",
    f"it is nested over {MAX_JSON_DEPTH} levels deep",
)
_UTF8, _END, _TRAILING, _VALUE, _NAME, _COLON, _SEPARATOR, _COMMA, _CONTROL, _ESCAPE, _SURROGATE, _DEPTH = range(1, 13)
_OBJECT, _ARRAY = 1, 2


def find_json_faults(values: pa.Array) -> dict[int, str]:
    """Return by row the syntax error of each invalid value, with its byte offset. `values` is binary without nulls."""
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    faults, positions = np.zeros(len(values), np.uint8), np.zeros(len(values), np.int64)
    _scan_rows(bounds, content, faults, positions, np.zeros(MAX_JSON_DEPTH + 1, np.uint8))
    bad = np.flatnonzero(faults)
    found = zip(bad.tolist(), faults[bad].tolist(), positions[bad].tolist(), strict=True)
    return {row: f"{_FAULTS[fault]}, at byte {position}" for row, fault, position in found}


@njit(cache=True, nogil=True)
def _scan_rows(bounds, data, faults, positions, containers):
    """Scan each value data[bounds[row]:bounds[row + 1]]; set its fault (uint8, 0 is none) and position (int64)."""
    for row in range(len(faults)):
        start, end = bounds[row], bounds[row + 1]
        fault, position = (0, end) if is_utf8(data, start, end) else (_UTF8, start)
        if not fault:
            fault, position = _scan(data, start, end, containers)
        faults[row], positions[row] = fault, position - start


@njit(cache=True, nogil=True)
def _scan(data, at, end, containers):  # noqa: C901 - the states of the grammar, on one screen
    """Return (fault, position) of the value in data[at:end].

    `data` (uint8) are the bytes of all values; `containers` (uint8) has _OBJECT or _ARRAY for each open level.
    """
    depth = 0
    while True:
        at = _space(data, at, end)
        if at >= end:
            return _END, at
        byte = data[at]
        if byte == 123 or byte == 91:  # noqa: PLR1714 - { [, compiled
            depth += 1
            if depth > MAX_JSON_DEPTH:
                return _DEPTH, at
            containers[depth] = _OBJECT if byte == 123 else _ARRAY
            at = _space(data, at + 1, end)
            if at < end and data[at] == byte + 2:
                depth, at = depth - 1, at + 1
            elif byte == 123:
                at, fault = _name(data, at, end)
                if fault:
                    return fault, at
                continue
            else:
                continue
        else:
            at, fault = _scalar(data, at, end)
            if fault:
                return fault, at
        at, depth, fault = _after(data, at, end, containers, depth)
        if fault:
            return fault, at
        if not depth:
            return (0, at) if at >= end else (_TRAILING, at)


@njit(inline="always")
def _space(data, at, end):
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@njit(cache=True, nogil=True)
def _after(data, at, end, containers, depth):
    """Return (position, depth, fault) after a value: the next value, or the end of the document at depth 0."""
    while True:
        at = _space(data, at, end)
        if not depth:
            return at, depth, 0
        if at >= end:
            return at, depth, _END
        closing = 125 if containers[depth] == _OBJECT else 93
        if data[at] == closing:
            depth, at = depth - 1, at + 1
            continue
        if data[at] != 44:
            return at, depth, _SEPARATOR
        comma, at = at, _space(data, at + 1, end)
        if at < end and data[at] == closing:
            return comma, depth, _COMMA
        if containers[depth] == _OBJECT:
            at, fault = _name(data, at, end)
            return at, depth, fault
        return at, depth, 0


@njit(cache=True, nogil=True)
def _name(data, at, end):
    """Return (position after the colon, fault) of a field name."""
    if at >= end:
        return at, _END
    if data[at] != 34:
        return at, _NAME
    at, fault = _string(data, at + 1, end)
    if fault:
        return at, fault
    at = _space(data, at, end)
    if at >= end:
        return at, _END
    return (at + 1, 0) if data[at] == 58 else (at, _COLON)


@njit(cache=True, nogil=True)
def _scalar(data, at, end):
    """Return (position after it, fault) of a string, a number or a literal."""
    byte = data[at]
    if byte == 34:
        return _string(data, at + 1, end)
    if byte == 45 or 48 <= byte <= 57:
        return _number(data, at, end)
    for word in (b"true", b"false", b"null"):
        if at + len(word) <= end:
            same = True
            for index in range(len(word)):
                same &= data[at + index] == word[index]
            if same:
                return at + len(word), 0
    return at, _VALUE


@njit(cache=True, nogil=True)
def _number(data, at, end):
    start = at
    if data[at] == 45:
        at += 1
    if at < end and data[at] == 48:
        at += 1
    else:
        at, found = _digits(data, at, end)
        if not found:
            return start, _VALUE
    if at < end and data[at] == 46:
        at, found = _digits(data, at + 1, end)
        if not found:
            return start, _VALUE
    if at < end and (data[at] == 101 or data[at] == 69):
        at += 1
        if at < end and (data[at] == 43 or data[at] == 45):
            at += 1
        at, found = _digits(data, at, end)
        if not found:
            return start, _VALUE
    return at, 0


@njit(inline="always")
def _digits(data, at, end):
    """Return (position after the digits, whether there are any)."""
    first = at
    while at < end and 48 <= data[at] <= 57:
        at += 1
    return at, at > first


@njit(cache=True, nogil=True)
def _string(data, at, end):
    """Return (position after the closing quote, fault) of a string whose first character is at `at`."""
    while at < end:
        byte = data[at]
        if byte == 34:
            return at + 1, 0
        if byte < 32:
            return at, _CONTROL
        if byte != 92:
            at += 1
            continue
        size, fault = _escape(data, at, end)
        if fault:
            return at, fault
        at += size
    return at, _END


@njit(cache=True, nogil=True)
def _escape(data, at, end):
    """Return (length in bytes, fault) of the escape at `at`; a surrogate pair is two escapes."""
    if at + 1 >= end:
        return 0, _END
    byte = data[at + 1]
    if byte != 117:
        for known in b'"\\/bfnrt':
            if byte == known:
                return 2, 0
        return 0, _ESCAPE
    first = _hexadecimal(data, at + 2, end)
    if first < 0:
        return 0, _ESCAPE
    if not 0xD800 <= first <= 0xDFFF:
        return 6, 0
    if first >= 0xDC00 or at + 7 >= end or data[at + 6] != 92 or data[at + 7] != 117:
        return 0, _SURROGATE
    return (12, 0) if 0xDC00 <= _hexadecimal(data, at + 8, end) <= 0xDFFF else (0, _SURROGATE)


@njit(cache=True, nogil=True)
def _hexadecimal(data, at, end):
    """Return the value of four hexadecimal digits, -1 if they are not."""
    if at + 4 > end:
        return -1
    number = 0
    for index in range(at, at + 4):
        byte = data[index]
        if 48 <= byte <= 57:
            digit = byte - 48
        elif 97 <= byte <= 102 or 65 <= byte <= 70:
            digit = (byte | 32) - 87
        else:
            return -1
        number = number * 16 + digit
    return number
