"""The memory of Arrow strings, for compiled loops: as arrays, by bytes and by words of eight.

`data` is uint8. Compiled code does not check bounds: the caller reads only within a string.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit, types, uint8, uint64
from numba.extending import intrinsic


def bounds_and_bytes(strings: pa.StringArray | pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each string begins, int32 of shape (rows + 1,), and the bytes of all (uint8), without copying.

    Both are read-only, whatever the buffers are, and there is at least one byte: a loop is compiled once more for
    writable arrays, which takes seconds.
    """
    _, offsets, data = strings.buffers()
    bounds = np.frombuffer(offsets if len(strings) else bytes(4), np.int32)
    content = np.frombuffer(data if data is not None and data.size else bytes(1), np.uint8)
    bounds.flags.writeable = content.flags.writeable = False
    first = strings.offset if len(strings) else 0
    return bounds[first : first + len(strings) + 1], content


def _borrow(_, array):
    """Return an array without its reference count, for a loop whose arrays are kept by its caller, outside of the loop.

    Each call of a function that is not inlined counts the references of its arrays up and down by atomic instructions,
    which took more than half of the time of a JSON value. An array that the loop creates would be freed: pass it on.
    """

    def generate(context, builder, _, arguments):
        borrowed = context.make_array(array)(context, builder, arguments[0])
        borrowed.meminfo = context.get_constant_null(types.MemInfoPointer(types.voidptr))
        return borrowed._getvalue()  # noqa: SLF001 - numba has no public name for it

    return array(array), generate


borrow: Any = intrinsic(_borrow)


@njit(inline="always")
def byte_at(data, at):
    """Return the byte at `at`: an unsigned index is not tested for a negative one, which counts from the end."""
    return data[uint64(at)]


@njit(inline="always")
def has_at(data, at, word):
    """Return whether the bytes from `at` on are `word` (bytes); there must be as many."""
    same = True
    for index in range(len(word)):
        same &= byte_at(data, at + index) == word[index]
    return same


@njit(inline="always")
def word_at(data, at):
    """Return the eight bytes at `at` as a little-endian word: an unsigned index compiles to one load."""
    word = uint64(0)
    for byte in range(8):
        word |= uint64(data[uint64(at + byte)]) << uint64(8 * byte)
    return word


@njit(inline="always")
def write_word(word, text, to):
    """Write a little-endian word to `to`: eight bytes, as one store."""
    for byte in range(8):
        text[uint64(to + byte)] = uint8(word >> uint64(8 * byte))


@njit(inline="always")
def copy_bytes(data, at, end, text, to):
    """Write data[at:end] to `to`; the last word of eight bytes or more overlaps the one before it."""
    size = end - at
    if size < 8:
        for byte in range(size):
            text[uint64(to + byte)] = byte_at(data, at + byte)
    else:
        for byte in range(0, size - 8, 8):
            write_word(word_at(data, at + byte), text, to + byte)
        write_word(word_at(data, end - 8), text, to + size - 8)
