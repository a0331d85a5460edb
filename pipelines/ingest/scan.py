"""The compiled loops over the bytes of a record batch (format 2): where is what, with every bound checked."""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop from its arguments)

import numpy as np
from numba import njit

BROKEN = -1
"""A position, returned for bytes that are not what the format says; whatever is read from it stays broken."""
_LOW, _STEP = np.uint64(0x7F), np.uint64(7)
_BITS, _LAST_SHIFT = np.uint64(64), np.uint64(63)


@njit(cache=True, nogil=True)
def _varint(data, at, end):
    """Return a zig-zag varint and the position behind it, which is at most `end`."""
    value, shift = np.uint64(0), np.uint64(0)
    while 0 <= at < end and shift < _BITS:
        byte = np.uint64(data[at])
        at += 1
        if shift == _LAST_SHIFT and byte > 1:  # more than 64 bits
            break
        value |= (byte & _LOW) << shift
        if byte <= _LOW:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += _STEP
    return np.int64(0), BROKEN


@njit(cache=True, nogil=True)
def _bytes(data, at, end):
    """Return start and size of length-prefixed bytes, and the position behind them; a size of -1 is null."""
    size, at = _varint(data, at, end)
    if at == BROKEN or size < -1 or size > end - at:
        return 0, 0, BROKEN
    return at, size, at + max(size, 0)


@njit(cache=True, nogil=True)
def scan_records(data, sizes, counts, lasts, most_headers, fields, whole):
    """Fill a column of `fields` for each record of batches that stand one behind the other in `data`.

    A batch has sizes[i] bytes and counts[i] records, whose offset deltas rise to lasts[i] at most; together they have
    `most_headers` at most. Rows: offset delta, time delta, key start, key size, value start, value size, headers start,
    header count. `whole` says of each batch whether it is that; of one that is not, its columns hold anything.
    """
    first, begin = 0, 0
    for batch in range(len(sizes)):
        end = begin + sizes[batch]
        whole[batch] = _scan_batch(
            data, begin, end, fields[:, first : first + counts[batch]], lasts[batch], most_headers
        )
        begin = end
        first += counts[batch]


@njit(cache=True, nogil=True)
def _scan_batch(data, at, end, fields, last_delta, most_headers):
    delta, headers = -1, 0
    for row in range(fields.shape[1]):
        at = _scan_record(data, at, end, fields, row, most_headers)
        if at == BROKEN or fields[0, row] <= delta or fields[0, row] > last_delta:
            return False
        delta = fields[0, row]
        headers += fields[7, row]
    return at == end and headers <= most_headers


@njit(cache=True, nogil=True)
def _scan_record(data, at, batch_end, fields, row, most_headers):
    """Fill the column `row` from the record at `at`; return the position behind it, or BROKEN."""
    length, at = _varint(data, at, batch_end)
    if at == BROKEN or length < 1 or length > batch_end - at:
        return BROKEN
    end = at + length
    at += 1  # attributes of the record, unused by the format
    fields[1, row], at = _varint(data, at, end)
    fields[0, row], at = _varint(data, at, end)
    fields[2, row], fields[3, row], at = _bytes(data, at, end)
    fields[4, row], fields[5, row], at = _bytes(data, at, end)
    fields[7, row], at = _varint(data, at, end)
    fields[6, row] = at
    if at == BROKEN or fields[7, row] < 0 or fields[7, row] > most_headers:
        return BROKEN
    for _ in range(fields[7, row]):
        _, key_size, at = _bytes(data, at, end)
        _, _, at = _bytes(data, at, end)
        if at == BROKEN or key_size < 0:
            return BROKEN
    if at != end:
        return BROKEN
    return at


@njit(cache=True, nogil=True)
def scan_headers(data, starts, counts, slices):
    """Fill key start, key size, value start and value size of every header; `scan_records` has checked the bounds."""
    header = 0
    for row in range(len(starts)):
        at = starts[row]
        for _ in range(counts[row]):
            slices[0, header], slices[1, header], at = _bytes(data, at, len(data))
            slices[2, header], slices[3, header], at = _bytes(data, at, len(data))
            header += 1


@njit(cache=True, nogil=True)
def copy_slices(data, starts, sizes, joined):
    """Write data[start:start + size] of all rows one behind the other into `joined`."""
    at = 0
    for row in range(len(starts)):
        size = sizes[row]
        joined[at : at + size] = data[starts[row] : starts[row] + size]
        at += size
