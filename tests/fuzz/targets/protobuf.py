"""Protobuf values: fields encoded by hand, so that tags, lengths and varints may be wrong."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from pipelines.contract.encode import encode
from pipelines.contract.event_pb2 import Event
from pipelines.contract.schema import EVENT
from pipelines.settings import ContractSettings
from tests.fuzz.neighbours import GOOD, NOON, check_neighbours
from tests.fuzz.target import Target

CONTRACT = ContractSettings()
NEIGHBOURS: list[bytes] = encode(pa.Table.from_pylist(GOOD, EVENT)).to_pylist()
_VARINTS = (0, 1, 127, 128, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 10, 253402300800)
_TEXTS = (b"", b"e-1", b"u-1", b"DriverRated", b"\xff\xfe", b"\xed\xa0\x80", b"a\x00b", b"x" * 300, "\u202e".encode())


def varint(number: int) -> bytes:
    """Return a 64-bit number as a varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def generate(rng: random.Random) -> bytes:
    """Return a message of a few fields, most of them well-formed."""
    if rng.random() < 0.3:
        return b"".join(_good_field(rng, number) for number in rng.sample(range(1, 6), 5))
    return b"".join(_field(rng, depth=2) for _ in range(rng.randint(0, 8)))


def _good_field(rng: random.Random, number: int) -> bytes:
    if number == 4:
        return _delimited(4, _timestamp(rng))
    if number == 5:
        return b"".join(_delimited(5, _entry(rng)) for _ in range(rng.randint(0, 3)))
    return _delimited(number, f"v-{rng.randrange(10)}".encode())


def _field(rng: random.Random, depth: int) -> bytes:
    number = rng.choice((1, 2, 3, 4, 5, 5, 6, 15, 16, 2**28, 2**29 - 1, 0))
    match rng.choice((0, 1, 2, 2, 2, 2, 3, 4, 5, 6)):
        case 0:
            return varint(number << 3) + varint(rng.choice(_VARINTS))
        case 1:
            return varint(number << 3 | 1) + rng.randbytes(8)
        case 2:
            return _delimited(number, _payload(rng, depth), rng.choice((None,) * 7 + _VARINTS))
        case 3:
            inner = b"".join(_field(rng, depth - 1) for _ in range(2)) if depth else b""
            return varint(number << 3 | 3) + inner + varint(number << 3 | 4)
        case 5:
            return varint(number << 3 | 5) + rng.randbytes(4)
        case kind:
            return varint(number << 3 | kind) + b"\x00" * rng.randint(0, 3)


def _payload(rng: random.Random, depth: int) -> bytes:
    match rng.randrange(4):
        case 0:
            return _timestamp(rng)
        case 1:
            return _entry(rng)
        case 2 if depth:
            return b"".join(_field(rng, depth - 1) for _ in range(rng.randint(0, 4)))
        case _:
            return rng.choice(_TEXTS)


def _timestamp(rng: random.Random) -> bytes:
    near = int(NOON.timestamp()) + rng.randint(-(10**6), 10**5)
    seconds = rng.choice((near, near, near, *_VARINTS))
    return b"\x08" + varint(seconds) + b"\x10" + varint(rng.choice((0, 1, 999, 999_999_999, *_VARINTS)))


def _entry(rng: random.Random) -> bytes:
    parts = [b"\x0a" + _sized(rng.choice(_TEXTS)), b"\x12" + _sized(rng.choice(_TEXTS))]
    return b"".join(rng.sample(parts, rng.choice((0, 1, 2, 2, 2))))


def _sized(payload: bytes) -> bytes:
    return varint(len(payload)) + payload


def _delimited(number: int, payload: bytes, size: int | None = None) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload) if size is None else size) + payload


def second_opinion(data: bytes) -> dict[str, Any] | None:
    """Return the event that Google's runtime decodes, if it satisfies the contract.

    The runtime treats a map entry with an unknown field as unknown, so such an event is not compared.
    """
    try:
        event = Event.FromString(data)
        time = datetime.fromtimestamp(event.timestamp.seconds, UTC) + timedelta(
            microseconds=event.timestamp.nanos // 1_000
        )
    except (DecodeError, ValueError, OverflowError, OSError):
        return None
    if len(UnknownFieldSet(event)):
        return None
    texts = [event.event_id, event.user_id, event.action_type]
    sizes = [len(text.encode()) for text in texts]
    if not all(0 < size <= limit for size, limit in zip(sizes, (256, 256, 128), strict=True)):
        return None
    if not CONTRACT.earliest <= time <= NOON + timedelta(days=1) or not 0 <= event.timestamp.nanos < 10**9:
        return None
    if sum(len(text.encode()) for pair in event.metadata.items() for text in pair) > CONTRACT.max_metadata_bytes:
        return None
    return dict(zip(EVENT.names, [*texts, time, sorted(event.metadata.items())], strict=True))


def check(data: bytes) -> str:
    """Decode the value among valid events."""
    return check_neighbours(NEIGHBOURS, [data], CONTRACT, second_opinion)


TARGETS = {"protobuf": Target(generate, check, good=NEIGHBOURS[0], refusals=())}
