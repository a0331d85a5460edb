"""Digests of events: the keys of the dedup index.

`event_id` becomes 128 bits of SipHash-2-4 (Aumasson and Bernstein, 2012) under a secret key: with 300 million ids
the probability that any two share a digest is about 1e-22, and without the key a collision cannot be constructed. The
payload (all other fields) becomes 64 bits that do not depend on the order of the metadata entries or on the wire
format; they only distinguish a duplicate from a conflict when the event_id is the same.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop from its arguments)

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit, uint64

from pipelines.contract.buffers import borrow, bounds_and_bytes, word_at

_KEY_BYTES = 16
_U = np.uint64


@dataclass(frozen=True, slots=True)
class Digests:
    """Three uint64 arrays of shape (events,): the `high` and `low` half of the id digest, and the `payload` digest."""

    high: np.ndarray
    low: np.ndarray
    payload: np.ndarray

    def __len__(self) -> int:
        return len(self.high)


def digest(events: pa.Table, key: bytes) -> Digests:
    """Return the digests of `events` (EVENT columns, no nulls). Raises ValueError unless `key` has 16 bytes."""
    if len(key) != _KEY_BYTES:
        raise ValueError(f"the key has {len(key)} bytes, not {_KEY_BYTES}")
    k0, k1 = np.frombuffer(key, dtype="<u8")
    rows = len(events)
    high, low, payload = np.empty(rows, _U), np.empty(rows, _U), np.empty(rows, _U)
    start = 0
    for batch in events.combine_chunks().to_batches():
        end = start + len(batch)
        metadata = batch.column("metadata")
        _digest_rows(
            k0,
            k1,
            *bounds_and_bytes(batch.column("event_id")),
            *bounds_and_bytes(batch.column("user_id")),
            *bounds_and_bytes(batch.column("action_type")),
            batch.column("event_time").cast(pa.int64()).to_numpy(),
            metadata.offsets.to_numpy(),
            *bounds_and_bytes(metadata.keys),
            *bounds_and_bytes(metadata.items),
            high[start:end],
            low[start:end],
            payload[start:end],
        )
        start = end
    return Digests(high, low, payload)


def digest_ids(event_ids: pa.ChunkedArray, key: bytes) -> Digests:
    """Return the digests of event_ids (strings, no nulls) without payloads, which are 0."""
    k0, k1 = np.frombuffer(key, dtype="<u8")
    rows = len(event_ids)
    high, low = np.empty(rows, _U), np.empty(rows, _U)
    _digest_strings(k0, k1, *bounds_and_bytes(event_ids.combine_chunks()), high, low)
    return Digests(high, low, np.zeros(rows, _U))


@njit(inline="always")
def _rotate(word, bits):
    return (word << uint64(bits)) | (word >> uint64(64 - bits))


@njit(inline="always")
def _round(v0, v1, v2, v3):
    v0 += v1
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 += v3
    v3 = _rotate(v3, 16) ^ v2
    v0 += v3
    v3 = _rotate(v3, 21) ^ v0
    v2 += v1
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


@njit(cache=True, nogil=True)
def siphash128(k0, k1, data, start, end):
    """Return the two uint64 halves of SipHash-2-4-128 of data[start:end] (uint8), first output word first."""
    v0 = k0 ^ uint64(0x736F6D6570736575)
    v1 = k1 ^ uint64(0x646F72616E646F6D) ^ uint64(0xEE)
    v2 = k0 ^ uint64(0x6C7967656E657261)
    v3 = k1 ^ uint64(0x7465646279746573)
    position = start
    while position + 8 <= end:
        word = word_at(data, position)
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
        position += 8
    word = uint64((end - start) & 0xFF) << uint64(56)
    for byte in range(end - position):
        word |= uint64(data[uint64(position + byte)]) << uint64(8 * byte)
    v3 ^= word
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= word
    v2 ^= uint64(0xEE)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    first = v0 ^ v1 ^ v2 ^ v3
    v1 ^= uint64(0xDD)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return first, v0 ^ v1 ^ v2 ^ v3


@njit(cache=True, nogil=True)
def _digest_strings(k0, k1, bounds, data, high, low):
    data = borrow(data)
    for row in range(len(high)):
        high[row], low[row] = siphash128(k0, k1, data, bounds[row], bounds[row + 1])


@njit(cache=True, nogil=True)
def _digest_rows(
    k0,
    k1,
    id_bounds,
    id_bytes,
    user_bounds,
    user_bytes,
    action_bounds,
    action_bytes,
    times,
    entries,
    key_bounds,
    key_bytes,
    value_bounds,
    value_bytes,
    high,
    low,
    payload,
):
    id_bytes, user_bytes, action_bytes = borrow(id_bytes), borrow(user_bytes), borrow(action_bytes)
    key_bytes, value_bytes = borrow(key_bytes), borrow(value_bytes)
    for row in range(len(high)):
        high[row], low[row] = siphash128(k0, k1, id_bytes, id_bounds[row], id_bounds[row + 1])
        # The digest of each field is the key of the next one, so that bytes cannot move between fields.
        a, b = siphash128(k0, k1, user_bytes, user_bounds[row], user_bounds[row + 1])
        a, b = siphash128(a, b, action_bytes, action_bounds[row], action_bounds[row + 1])
        # A sum over the entries, since their order in the map has no meaning.
        total = uint64(times[row]) * uint64(0x9E3779B97F4A7C15)
        for entry in range(entries[row], entries[row + 1]):
            c, d = siphash128(a, b, key_bytes, key_bounds[entry], key_bounds[entry + 1])
            c, d = siphash128(c, d, value_bytes, value_bounds[entry], value_bounds[entry + 1])
            total += c
        payload[row] = (a ^ total) * uint64(0xC2B2AE3D27D4EB4F) ^ b
