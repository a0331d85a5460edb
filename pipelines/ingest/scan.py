"""Compiled loops over the bytes of record batches (format 2): they locate each field, with every bound checked.

The format is described at https://kafka.apache.org/documentation/#recordbatch. Positions are indices into `data`, an
array of uint8 of shape (bytes,).
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop from its arguments)

import numpy as np
from numba import njit

from pipelines.contract.buffers import borrow, copy_bytes

BROKEN = -1
"""The position returned for malformed bytes; reading from it returns BROKEN again."""
FIELD_COUNT = 8
OFFSET_DELTA, TIME_DELTA, KEY_START, KEY_SIZE, VALUE_START, VALUE_SIZE, HEADERS_START, HEADER_COUNT = range(FIELD_COUNT)
"""The rows of `fields`."""
_LOW_BITS, _STEP = np.uint64(0x7F), np.uint64(7)
_BITS, _LAST_SHIFT = np.uint64(64), np.uint64(63)


@njit(cache=True, nogil=True)
def _varint(data, at, end):
    """Return a zig-zag varint and the position after it, `end` at most."""
    value, shift = np.uint64(0), np.uint64(0)
    while 0 <= at < end and shift < _BITS:
        byte = np.uint64(data[at])
        at += 1
        if shift == _LAST_SHIFT and byte > 1:  # more than 64 bits
            break
        value |= (byte & _LOW_BITS) << shift
        if byte <= _LOW_BITS:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += _STEP
    return np.int64(0), BROKEN


@njit(cache=True, nogil=True)
def _bytes(data, at, end):
    """Return start and size of length-prefixed bytes, and the position after them; a size of -1 is null."""
    size, at = _varint(data, at, end)
    if at == BROKEN or size < -1 or size > end - at:
        return 0, 0, BROKEN
    return at, size, at + max(size, 0)


@njit(cache=True, nogil=True)
def scan_records(data, sizes, counts, last_deltas, max_headers, fields, valid):
    """Locate the fields of every record of the batches that are concatenated in `data`.

    Input: uint8 `data` of shape (bytes,); int64 `sizes` (bytes), `counts` (records) and `last_deltas` (the largest
    offset delta allowed), of shape (batches,); `max_headers`, the number of headers allowed per batch.

    Output: int64 `fields` of shape (FIELD_COUNT, records), a column per record: deltas in offsets and ms, positions and
    sizes in bytes. Bool `valid` of shape (batches,): whether the bytes of a batch are exactly its records, with rising
    offset deltas. The columns of an invalid batch are undefined.
    """
    data, fields = borrow(data), borrow(fields)
    first, begin = 0, 0
    for batch in range(len(sizes)):
        end = begin + sizes[batch]
        valid[batch] = _scan_batch(
            data, begin, end, fields[:, first : first + counts[batch]], last_deltas[batch], max_headers
        )
        begin = end
        first += counts[batch]


@njit(cache=True, nogil=True)
def _scan_batch(data, at, end, fields, last_delta, max_headers):
    delta, headers = -1, 0
    for record in range(fields.shape[1]):
        at = _scan_record(data, at, end, fields, record, max_headers)
        if at == BROKEN or fields[OFFSET_DELTA, record] <= delta or fields[OFFSET_DELTA, record] > last_delta:
            return False
        delta = fields[OFFSET_DELTA, record]
        headers += fields[HEADER_COUNT, record]
    return at == end and headers <= max_headers


@njit(cache=True, nogil=True)
def _scan_record(data, at, batch_end, fields, record, max_headers):
    """Fill column `record` of `fields` from the record at `at`; return the position after it, or BROKEN."""
    length, at = _varint(data, at, batch_end)
    if at == BROKEN or length < 1 or length > batch_end - at:
        return BROKEN
    end = at + length
    at += 1  # the record's attributes: unused by the format
    fields[TIME_DELTA, record], at = _varint(data, at, end)
    fields[OFFSET_DELTA, record], at = _varint(data, at, end)
    fields[KEY_START, record], fields[KEY_SIZE, record], at = _bytes(data, at, end)
    fields[VALUE_START, record], fields[VALUE_SIZE, record], at = _bytes(data, at, end)
    fields[HEADER_COUNT, record], at = _varint(data, at, end)
    fields[HEADERS_START, record] = at
    if at == BROKEN or fields[HEADER_COUNT, record] < 0 or fields[HEADER_COUNT, record] > max_headers:
        return BROKEN
    for _ in range(fields[HEADER_COUNT, record]):
        _, key_size, at = _bytes(data, at, end)
        _, _, at = _bytes(data, at, end)
        if at == BROKEN or key_size < 0:
            return BROKEN
    if at != end:
        return BROKEN
    return at


@njit(cache=True, nogil=True)
def scan_headers(data, starts, counts, slices):
    """Locate the headers of records, within bounds that `scan_records` checked.

    Input: int64 `starts` (positions) and `counts` (headers), of shape (records,). Output: int64 `slices` of shape
    (4, headers): key start, key size, value start, value size, in bytes.
    """
    data = borrow(data)
    header = 0
    for record in range(len(starts)):
        at = starts[record]
        for _ in range(counts[record]):
            slices[0, header], slices[1, header], at = _bytes(data, at, len(data))
            slices[2, header], slices[3, header], at = _bytes(data, at, len(data))
            header += 1


@njit(cache=True, nogil=True)
def copy_slices(data, starts, sizes, joined):
    """Concatenate data[start:start + size] of every row into `joined`.

    `starts` and `sizes` are int64 of shape (rows,), in bytes; `joined` is uint8 of shape (sum of sizes,).
    """
    data, joined = borrow(data), borrow(joined)
    at = 0
    for row in range(len(starts)):
        copy_bytes(data, starts[row], starts[row] + sizes[row], joined, at)
        at += sizes[row]
