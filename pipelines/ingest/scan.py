"""The compiled loops over the bytes of a record batch (format 2): where is what, with every bound checked."""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop from its arguments)

from numba import njit

BROKEN = -1
"""A position, returned for bytes that are not what the format says; whatever is read from it stays broken."""


@njit(cache=True, nogil=True)
def _varint(data, at, end):
    """Return a zig-zag varint and the position behind it, which is at most `end`."""
    value, shift = 0, 0
    while 0 <= at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
    return 0, BROKEN


@njit(cache=True, nogil=True)
def _bytes(data, at, end):
    """Return start and size of length-prefixed bytes, and the position behind them; a size of -1 is null."""
    size, at = _varint(data, at, end)
    if at == BROKEN or size < -1 or size > end - at:
        return 0, 0, BROKEN
    return at, size, at + max(size, 0)


@njit(cache=True, nogil=True)
def scan_records(data, sizes, counts, fields):
    """Fill a column of `fields` for each record of batches that stand one behind the other in `data`.

    A batch has sizes[i] bytes and counts[i] records. Rows: offset delta, time delta, key start, key size, value start,
    value size, headers start, header count. Returns the number of the first batch that is not whole records, or how
    many batches there are.
    """
    row, at = 0, 0
    for batch in range(len(sizes)):
        end = at + sizes[batch]
        for _ in range(counts[batch]):
            at = _scan_record(data, at, end, fields, row)
            row += 1
        if at != end:
            return batch
    return len(sizes)


@njit(cache=True, nogil=True)
def _scan_record(data, at, batch_end, fields, row):
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
    for _ in range(fields[7, row]):
        _, key_size, at = _bytes(data, at, end)
        _, _, at = _bytes(data, at, end)
        if at == BROKEN or key_size < 0:
            return BROKEN
    if at != end or fields[7, row] < 0:
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
