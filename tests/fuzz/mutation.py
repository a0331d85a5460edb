"""Small mutations of known inputs, which a grammar would never generate."""

import random
import re
from collections.abc import Callable

MAX_BYTES = 256 * 1024
"""The maximum size of an input; larger ones cost time and find nothing new."""
_NUMBER = re.compile(rb"[0-9]+")
_NUMBERS = (b"0", b"-1", b"1e999999999", b"9223372036854775808", b"18446744073709551616", b"2147483648", b"0.1", b"nan")
_TOKENS = (
    b"\x00",
    b"\xff" * 9 + b"\x01",  # a 64-bit varint: negative as an int, and a sum with it wraps
    b"\x80" * 10,
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\x07",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"\r\n",
    b"\x1b[2J",
    b"\xe2\x80\xae",
    b"{}",
    b"null",
    b"[]",
)
_MAX_NESTING = 5_000
Change = Callable[[random.Random, bytes, bytes], bytes]


def mutate_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return `data` after one to four mutations, which may insert parts of `other`."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_CHANGES)(rng, data, other)[:MAX_BYTES]
    return data


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Return the start and end of a slice, short ones more often than long ones."""
    start = rng.randint(0, len(data))
    longest = rng.choice((1, 2, 8, 64, len(data)))
    return start, min(len(data), start + rng.randint(0, longest))


def _replaced(rng: random.Random, data: bytes, new: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + new + data[end:]


def _flip(rng: random.Random, data: bytes, _: bytes) -> bytes:
    if not data:
        return b"\x00"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _set(rng: random.Random, data: bytes, _: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[at + 1 :]


def _delete(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return _replaced(rng, data, b"")


def _cut(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _repeat(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _span(rng, data)
    times = min(rng.choice((1, 2, 10, 1_000)), MAX_BYTES // max(1, end - start))
    return data[:end] + data[start:end] * times + data[end:]


def _token(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return _replaced(rng, data, rng.choice(_TOKENS))


def _nest(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return _replaced(rng, data, rng.choice((b"[", b"{", b'{"a":', b"(", b"[[")) * rng.choice((3, 100, _MAX_NESTING)))


def _renumber(rng: random.Random, data: bytes, _: bytes) -> bytes:
    found = list(_NUMBER.finditer(data[:65_536]))
    if not found:
        return data
    chosen = rng.choice(found)
    return data[: chosen.start()] + rng.choice(_NUMBERS) + data[chosen.end() :]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _span(rng, other)
    return _replaced(rng, data, other[start:end])


_CHANGES: tuple[Change, ...] = (_flip, _set, _delete, _cut, _repeat, _token, _nest, _renumber, _splice)
