"""The metadata column: its size in bytes, and removal of duplicate keys."""
# pyright: reportAttributeAccessIssue=false, reportMissingParameterType=false
# (the functions of pyarrow.compute are created at import; numba infers the types of a compiled loop)

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from pipelines.contract.buffers import borrow, bounds_and_bytes, byte_at

_FEW_KEYS = 16
"""Up to so many keys of an event are compared with each other, which takes a tenth of the time of a dictionary."""


def sizes(metadata: pa.ChunkedArray) -> pa.Array:
    """Return the total bytes of the keys and values of each row, as an int64 array."""
    column = metadata.combine_chunks()
    lengths = pc.add(pc.binary_length(column.keys), pc.fill_null(pc.binary_length(column.items), 0))
    ends = np.concatenate([[0], np.cumsum(lengths.to_numpy(), dtype=np.int64)])
    offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
    return pa.array(ends[offsets[1:]] - ends[offsets[:-1]])


def last_value_wins(events: pa.Table) -> pa.Table:
    """Return `events` without duplicate metadata keys: the last entry of a key is kept.

    The wire format may contain a key more than once; Protobuf defines that the last entry counts.
    """
    column = events["metadata"].combine_chunks()
    rows = np.flatnonzero(has_repeated_key(column.offsets.to_numpy(), column.keys))
    if not len(rows):
        return events
    entries = column.take(pa.array(rows)).to_pylist()
    deduplicated = pa.array([list(dict(row).items()) for row in entries], column.type)
    order = np.arange(len(column))
    order[rows] = len(column) + np.arange(len(rows))
    index = events.schema.get_field_index("metadata")
    both = pa.concat_arrays([column, deduplicated])
    return events.set_column(index, events.schema.field(index), both.take(pa.array(order)))


def has_repeated_key(bounds: np.ndarray, keys: pa.Array) -> np.ndarray:
    """Return whether each row (bool) has a key twice; `bounds` (rows + 1,) is where the keys of each row begin."""
    repeated, counts = np.zeros(len(bounds) - 1, bool), np.diff(bounds)
    if counts.max(initial=0) <= _FEW_KEYS:
        _compare_keys(bounds, *bounds_and_bytes(keys), repeated)
        return repeated
    codes = keys.dictionary_encode()
    seen = np.full(len(codes.dictionary), -1, np.int64)
    _mark_repeated(bounds, codes.indices.to_numpy(), seen, repeated)
    return repeated


@njit(cache=True, nogil=True)
def _compare_keys(bounds, key_bounds, key_bytes, repeated):
    """Set `repeated` (bool, by row) where a row has a key twice: each is compared with those before it."""
    key_bytes, first = borrow(key_bytes), bounds[0]
    for row in range(len(repeated)):
        for key in range(bounds[row] - first + 1, bounds[row + 1] - first):
            for earlier in range(bounds[row] - first, key):
                repeated[row] |= _are_equal(key_bytes, key_bounds, key, earlier)


@njit(inline="always")
def _are_equal(data, bounds, one, other):
    size, at, place = bounds[one + 1] - bounds[one], bounds[one], bounds[other]
    same = size == bounds[other + 1] - place
    while same and size:
        size -= 1
        same = byte_at(data, at + size) == byte_at(data, place + size)
    return same


@njit(cache=True, nogil=True)
def _mark_repeated(bounds, codes, seen, repeated):
    """Set `repeated` (bool, by row) where a row has a duplicate code; `seen` (int64, by code) is its last row."""
    first = bounds[0]
    for row in range(len(repeated)):
        for entry in range(bounds[row] - first, bounds[row + 1] - first):
            repeated[row] |= seen[codes[entry]] == row
            seen[codes[entry]] = row
