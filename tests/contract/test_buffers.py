"""The memory of Arrow strings has one type in compiled loops, and the right bytes."""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from numba import njit, typeof

from pipelines.contract.buffers import borrow, bounds_and_bytes, copy_bytes

_STRINGS = pa.array([b"ab", b"", b"c"], pa.binary())
_COPIED = pa.Array.from_buffers(
    pa.binary(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(np.zeros(1, np.uint8))]
)


@pytest.mark.parametrize(
    "strings",
    [
        _STRINGS,
        _STRINGS.slice(1, 1),
        _STRINGS.slice(3),
        _STRINGS.filter(pa.array([True, False, True])),
        _COPIED,
        pa.array([], pa.binary()),
        pa.array([b"", b""], pa.binary()),
        pa.nulls(2, pa.string()),
    ],
)
def test_one_type_for_all_strings(strings: pa.Array) -> None:
    """Writable, sliced and empty arrays do not make numba compile a loop once more, which takes seconds."""
    arrays = bounds_and_bytes(strings)
    assert [typeof(array) for array in arrays] == [typeof(array) for array in bounds_and_bytes(_STRINGS)]
    bounds, data = arrays
    texts = [data[start:end].tobytes() for start, end in pairwise(bounds)]
    assert texts == [text or b"" for text in strings.cast(pa.binary()).to_pylist()]


@njit
def _get(data, at):
    return data[at]


@njit
def _sum_borrowed(data):
    data, total = borrow(data), 0
    for at in range(len(data)):
        total += _get(data, at)
    return total


def test_a_borrowed_array_is_the_same_memory_and_stays_with_its_owner() -> None:
    """It is neither copied nor freed: the loop reads the owner's bytes, read-only or not, and again."""
    data = np.arange(5, dtype=np.uint8)
    _, read_only = bounds_and_bytes(_STRINGS)
    for _ in range(3):
        assert (_sum_borrowed(data), _sum_borrowed(read_only)) == (10, sum(b"abc"))
    data[0] = 7
    assert (_sum_borrowed(data), data.tolist()) == (17, [7, 1, 2, 3, 4])


@njit
def _copy(data, at, end, text, to):
    copy_bytes(data, at, end, text, to)


@pytest.mark.parametrize("size", range(26))
def test_bytes_are_copied_without_those_beside_them(size: int) -> None:
    """Of any size, by words or not, exactly the bytes are written."""
    data, text = np.arange(1, 41, dtype=np.uint8), np.zeros(40, np.uint8)
    _copy(data, 7, 7 + size, text, 5)
    assert text.tolist() == [0] * 5 + data[7 : 7 + size].tolist() + [0] * (35 - size)
