"""Compiled functions for the text of JSON strings: they replace escapes and write UTF-8.

`data` is uint8, the bytes of all values. A string is data[at:end] without its quotes, and valid
(`json_grammar.skip_string`).
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

import numpy as np
import pyarrow as pa
from numba import njit, uint64

from pipelines.contract.buffers import borrow, byte_at, word_at, write_word
from pipelines.contract.json_grammar import BACKSLASH, SMALL_U, hexadecimal

_EACH = uint64(0x0101010101010101)
"""Times a byte: this byte eight times."""


def read_strings(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> pa.StringArray:
    """Return the strings data[starts[row]:ends[row]] (int32); one with equal ends is empty."""
    text = np.empty(int((ends - starts).sum(dtype=np.int64)), np.uint8)
    bounds = np.empty(len(starts) + 1, np.int32)
    copy_strings(data, starts, ends, bounds, text)
    return pa.StringArray.from_buffers(len(starts), pa.py_buffer(bounds), pa.py_buffer(text))


@njit(cache=True, nogil=True)
def copy_strings(data, starts, ends, bounds, text):
    """Write strings into `text` (uint8), and where each begins into `bounds` (int32, one more than strings).

    `text` has room for the strings as they are in `data`: no escape is shorter than its character.
    """
    data, text = borrow(data), borrow(text)
    to = 0
    for row in range(len(starts)):
        bounds[row] = to
        to = _copy(data, starts[row], ends[row], text, to)
    bounds[len(starts)] = to


@njit
def equals(data, at, end, word):
    """Return whether a string is `word` (ASCII)."""
    for byte in word:
        if at >= end:
            return False
        character, after = byte_at(data, at), at + 1
        if character == BACKSLASH:
            character, after = _read_escape(data, at, end)
        if character != byte:
            return False
        at = after
    return at == end


@njit(inline="always")
def _copy(data, at, end, text, to):
    """Write a string to `to`, eight bytes at a time where none is an escape; return the position after it."""
    while at < end:
        if at + 8 <= end and _write_word(word_at(data, at), text, to):
            at, to = at + 8, to + 8
            continue
        byte = byte_at(data, at)
        if byte == BACKSLASH:
            character, at = _read_escape(data, at, end)
            to = _write(character, text, to)
        else:
            text[to] = byte
            at, to = at + 1, to + 1
    return to


@njit(inline="always")
def _write_word(word, text, to):
    """Write eight bytes to `to`, unless one is a backslash; return whether they were written."""
    backslashes = word ^ _EACH * uint64(BACKSLASH)
    if (backslashes - _EACH) & ~backslashes & _EACH * uint64(0x80):
        return False
    write_word(word, text, to)
    return True


@njit
def _read_escape(data, at, end):
    """Return the code point of an escape, or of a surrogate pair, and the position after it."""
    byte = byte_at(data, at + 1)
    if byte != SMALL_U:
        for index in range(5):
            if byte == b"bfnrt"[index]:
                return b"\b\f\n\r\t"[index], at + 2
        return byte, at + 2
    first = hexadecimal(data, at + 2, end)
    if not 0xD800 <= first <= 0xDFFF:
        return first, at + 6
    return 0x10000 + ((first - 0xD800) << 10) + hexadecimal(data, at + 8, end) - 0xDC00, at + 12


@njit
def _write(character, text, to):
    """Write a code point as UTF-8 to `to`; return the position after it."""
    more = 0 if character < 0x80 else 1 if character < 0x800 else 2 if character < 0x10000 else 3
    lead = 0 if more == 0 else 0xC0 if more == 1 else 0xE0 if more == 2 else 0xF0
    text[to] = lead | character >> 6 * more
    for byte in range(1, more + 1):
        text[to + byte] = 0x80 | (character >> 6 * (more - byte)) & 0x3F
    return to + more + 1
