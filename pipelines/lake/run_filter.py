"""The filter of a sorted run: part of each digest in about a byte, so that a new id reads no page of the run.

The digests of a run are sorted and uniform, so the filter is an Elias-Fano list of their leading bits, in the order of
the rows. Values are divided into buckets, one or two rows each. A bit sequence has a 1 for each row and a 0 at the end
of each bucket; `_TAIL_BITS` more bits of each row are packed beside it. Looking up an id counts zeros up to its bucket
and compares the tails there. This gives the row's number too, so a known id reads one row, without a search. An unknown
id is taken for a row with a probability of 1.6 to 3.2 %, and is then compared with it: never a wrong answer.

Building reads the run once, in order, and writes the filter in order, whatever the memory. Binary fuse filters are a
tenth smaller at the same rate, but are built in random order with 20 bytes per id, and do not know the row.

A filter is in a mapped file beside its run: under a memory limit the system prefers its pages, which each batch uses,
to those of runs; a smaller limit makes look-ups slower and never ends the process; and replacing a run needs no memory
for two filters. A run whose filter is missing, torn, or of another run or format is not used.

It also has a checksum of each 512 rows of the run, since no start can read all of a large run. A look-up
compares that of the rows that it reads, once in a process. So a known id whose row has changed is not taken for a new
one: its place is found by the filter, which has a checksum of its own.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop from its arguments)

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import int64, njit, uint64

from pipelines.lake.mapping import create_map, open_map

_FORMAT = 2
_HEADER_WORDS = 8
_TAIL_BITS, _TAILS_PER_WORD = 6, 10
_BLOCK_BITS = 8
"""The first row of every 256 buckets is stored."""
_SAMPLED_ROWS = 64
_CHECKED_ROWS = 512
"""A page of each column."""
_FACTOR = 0x9E3779B97F4A7C15


class DamagedRunError(LookupError):
    """A run does not have the digests that were written: the index has to be rebuilt."""

    def __init__(self) -> None:
        super().__init__("a run has changed on disk")


@dataclass(frozen=True, slots=True)
class Filter:
    """Words of a mapped file, all uint64: the first row of each block of buckets, the bits, tails, checksums."""

    bucket_bits: int
    starts: np.ndarray
    bits: np.ndarray
    tails: np.ndarray
    checksums: np.ndarray
    compared: np.ndarray
    """Which checksums this process has compared: bool."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that look-ups use."""
        return self.starts.nbytes + self.bits.nbytes + self.tails.nbytes + self.checksums.nbytes + self.compared.nbytes


def filter_path(run: Path) -> Path:
    """Return the path of a run's filter."""
    return run.with_suffix(".filter")


def write_filter(path: Path, run: np.ndarray) -> None:
    """Write the filter of a run (uint64, shape (3, rows)), without making it durable.

    A crash leaves a file without its checksum, which is not used. Raises OSError when the disk is full.
    """
    rows = run.shape[1]
    words = create_map(path, (_HEADER_WORDS + sum(_sizes(rows)),))
    parts = _parts(words, rows)
    _encode(run[0], parts.bucket_bits, parts.starts, parts.bits, parts.tails)
    _fill_checksums(run, parts.checksums)
    words[:_HEADER_WORDS] = _header(words, run)
    words.flush()


def read_filter(path: Path, run: np.ndarray) -> Filter | None:
    """Map the filter of a run (uint64, shape (3, rows)); None if the file is not a whole filter of this run.

    Reads the file once, which loads it into memory, and a few rows of the run.
    """
    rows = run.shape[1]
    try:
        words = open_map(path, (_HEADER_WORDS + sum(_sizes(rows)),))
    except (OSError, ValueError):
        return None
    return _parts(words, rows) if (words[:_HEADER_WORDS] == _header(words, run)).all() else None


def find_filtered(filtered: Filter, run: np.ndarray, highs: np.ndarray, lows: np.ndarray, positions: np.ndarray) -> int:
    """Set positions[i] to the row of the digest (highs[i], lows[i]) in a run, where it is still -1, by its filter.

    Digests are uint64, shape (n,), in any order; `positions`, int64, shape (n,), is written in place, as by
    `search.find`. Returns the number of rows of the run that were read. Raises DamagedRunError if some have changed.
    """
    lists = (filtered.starts, filtered.bits, filtered.tails)
    checks = (filtered.checksums, filtered.compared)
    rows_read = _find(filtered.bucket_bits, lists, checks, run, highs, lows, positions)
    if rows_read < 0:
        raise DamagedRunError
    return rows_read


def require_unchanged(filtered: Filter, run: np.ndarray) -> None:
    """Compare the checksums of all rows of a run. Raises DamagedRunError if some have changed."""
    if _count_changed(run, filtered.checksums):
        raise DamagedRunError


def _bucket_bits(rows: int) -> int:
    return max(_BLOCK_BITS, rows.bit_length() - 1)


def _sizes(rows: int) -> tuple[int, int, int, int]:
    """Return the number of words of the starts, the bits, the tails and the checksums."""
    buckets = 1 << _bucket_bits(rows)
    bits, tails = (rows + buckets + 63) // 64, -(-rows // _TAILS_PER_WORD)
    return buckets >> _BLOCK_BITS, bits, tails, -(-rows // _CHECKED_ROWS)


def _parts(words: np.ndarray, rows: int) -> Filter:
    starts, bits, tails, checksums = np.split(words[_HEADER_WORDS:], np.cumsum(_sizes(rows))[:-1])
    return Filter(_bucket_bits(rows), starts, bits, tails, checksums, np.zeros(len(checksums), bool))


def _header(words: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Return what identifies a filter: its format, its checksum, and the number and a sample of its run's rows."""
    rows = run.shape[1]
    sample = run[:, :: max(1, rows // _SAMPLED_ROWS)]
    mixed = np.bitwise_xor.reduce(sample * np.arange(1, 2 * sample.shape[1], 2, dtype=np.uint64), axis=1)
    layout = _FORMAT << 32 | _TAIL_BITS << 16 | _TAILS_PER_WORD
    return np.array([layout, rows, zlib.crc32(words[_HEADER_WORDS:].data), *mixed, run[0, -1], run[1, -1]], np.uint64)


@njit(cache=True, nogil=True)
def _encode(highs, bucket_bits, starts, bits, tails):
    """Write the filter of sorted high words, shape (rows,), into arrays of zeros."""
    block = 0
    for row in range(len(highs)):
        bucket = uint64(highs[row]) >> uint64(64 - bucket_bits)
        while block <= bucket >> uint64(_BLOCK_BITS):
            starts[block] = row
            block += 1
        bit = bucket + uint64(row)
        bits[bit >> uint64(6)] |= uint64(1) << (bit & uint64(63))
        shift = uint64(row % _TAILS_PER_WORD * _TAIL_BITS)
        tails[row // _TAILS_PER_WORD] |= _tail(highs[row], bucket_bits) << shift
    starts[block:] = len(highs)


@njit(inline="always")
def _checksum(run, number):
    """Return the checksum of some rows: any change of one word of a column changes it."""
    first, second, third = uint64(1), uint64(2), uint64(3)
    for row in range(number * _CHECKED_ROWS, min((number + 1) * _CHECKED_ROWS, run.shape[1])):
        first = _mixed(first ^ uint64(run[0, row]))
        second = _mixed(second ^ uint64(run[1, row]))
        third = _mixed(third ^ uint64(run[2, row]))
    return _mixed(_mixed(first) ^ second) ^ third


@njit(inline="always")
def _mixed(word):
    """Return another word for each word."""
    word *= uint64(_FACTOR)
    return word ^ (word >> uint64(29))


@njit(cache=True, nogil=True)
def _fill_checksums(run, checksums):
    for number in range(len(checksums)):
        checksums[number] = _checksum(run, number)


@njit(cache=True, nogil=True)
def _count_changed(run, checksums):
    changed = 0
    for number in range(len(checksums)):
        changed += _checksum(run, number) != checksums[number]
    return changed


@njit(cache=True, nogil=True)
def _find(bucket_bits, lists, checks, run, highs, lows, positions):
    """Return the number of rows of the run that were read, or -1 if a checksum differs."""
    (starts, bits, tails), (checksums, compared) = lists, checks
    rows_read = 0
    for i in range(len(highs)):
        if positions[i] >= 0:
            continue
        bucket = uint64(highs[i]) >> uint64(64 - bucket_bits)
        tail = _tail(highs[i], bucket_bits)
        bit = _first_bit(bucket, starts, bits)
        row = bit - bucket
        while bits[bit >> uint64(6)] >> (bit & uint64(63)) & uint64(1):
            shift = row % uint64(_TAILS_PER_WORD) * uint64(_TAIL_BITS)
            if tails[row // uint64(_TAILS_PER_WORD)] >> shift & uint64((1 << _TAIL_BITS) - 1) == tail:
                rows_read += 1
                number = int64(row) // _CHECKED_ROWS
                if not compared[number]:
                    if _checksum(run, number) != checksums[number]:
                        return -1
                    compared[number] = True
                if run[0, row] == highs[i] and run[1, row] == lows[i]:
                    positions[i] = row
                    break
            bit += uint64(1)
            row += uint64(1)
    return rows_read


@njit(inline="always")
def _tail(high, bucket_bits):
    """Return the bits of a high word that follow those of its bucket."""
    return uint64(high) << uint64(bucket_bits) >> uint64(64 - _TAIL_BITS)


@njit(inline="always")
def _first_bit(bucket, starts, bits):
    """Return the number of the bit that follows the zeros of all buckets before this one."""
    block = bucket >> uint64(_BLOCK_BITS)
    bit = starts[block] + (block << uint64(_BLOCK_BITS))
    zeros = bucket & uint64((1 << _BLOCK_BITS) - 1)
    while zeros:
        rest = ~bits[bit >> uint64(6)] >> (bit & uint64(63))
        count = _ones(rest)
        if count < zeros:
            zeros -= count
            bit = (bit | uint64(63)) + uint64(1)
            continue
        for _ in range(zeros - uint64(1)):
            rest &= rest - uint64(1)
        return bit + _ones((rest & (~rest + uint64(1))) - uint64(1)) + uint64(1)
    return bit


@njit(inline="always")
def _ones(word):
    """Return the number of ones of a word, by adding neighbours."""
    word -= word >> uint64(1) & uint64(0x5555555555555555)
    word = (word & uint64(0x3333333333333333)) + (word >> uint64(2) & uint64(0x3333333333333333))
    word = word + (word >> uint64(4)) & uint64(0x0F0F0F0F0F0F0F0F)
    return word * uint64(0x0101010101010101) >> uint64(56)
