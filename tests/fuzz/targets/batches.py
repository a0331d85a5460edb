"""Record batches and headers with any content that a producer can send under a valid CRC.

A fetch contains a valid batch, the bad one and another valid one. The bad batch becomes rows with offsets of its own,
or a client error that stops its topic partition; valid batches before it are always read.
"""

import random
import struct
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError
from kafka.record import MemoryRecords
from kafka.structs import TopicPartition

from pipelines.contract.decode import decode
from pipelines.ingest.record_batches import install_raw_batches, to_columns
from tests.fuzz import wire
from tests.fuzz.finding import shape
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.neighbours import GOOD, NOON, check_usable, event_of
from tests.fuzz.target import Target, demand
from tests.fuzz.targets.protobuf import CONTRACT, NEIGHBOURS

warnings.filterwarnings("ignore", category=DeprecationWarning)
_NOON_MS = int(NOON.timestamp() * 1000)
_POISON_OFFSET, _LATER_OFFSET = 10, 2**33
_NUMBERS = (-(2**63), -1, 0, 1, 10**12, 10**15, 10**18, 2**31 - 1, 2**40, 253402300799999, 2**63 - 1)
_COUNTS = (-1, 0, 1, 2, 3, 7, 1_000_001, 2**31 - 1, -(2**31))
_KEYS = (b"", b"schema", b"\xff\xfe", b"\xed\xa0\x80", b"a\x00b", b"k" * 300, b"__value_schema_id", b"\x1b[2J")
_MIN_TIME, _MAX_TIME = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)


def generate(rng: random.Random) -> bytes:
    """Return a batch whose header, records or compressed bytes may be wrong."""
    records = [_record(rng, delta) for delta in range(rng.choice((0, 1, 1, 2, 3)))]
    batch = wire.batch_of(records, codec=rng.choice((0, 0, 1, 2, 3, 4)), first_ms=_NOON_MS)
    if rng.random() < 0.5:
        batch = _with_wrong_fields(rng, batch)
    if rng.random() < 0.3:
        batch = replace(batch, body=mutate_bytes(rng, batch.body, batch.body))
    return bytes(batch)


def _with_wrong_fields(rng: random.Random, batch: wire.Batch) -> wire.Batch:
    wrong_values = {
        "records": _COUNTS,
        "last_offset_delta": _COUNTS,
        "first_ms": _NUMBERS,
        "max_ms": _NUMBERS,
        "attributes": (5, 7, 8, 0x10, 0x20, 0x30, -1, 0x18),
        "producer_id": _NUMBERS,
        "magic": (0, 1, 3, -1),
    }
    return replace(
        batch,
        **{name: rng.choice(wrong_values[name]) for name in rng.sample(sorted(wrong_values), rng.choice((1, 1, 2)))},
    )


def _record(rng: random.Random, delta: int) -> bytes:
    value = rng.choice((None, b"", b"\x0a" + b"\xff" * 9 + b"\x01", NEIGHBOURS[0], rng.randbytes(9)))
    key = rng.choice((None, b"", b"k", b"\xff"))
    offset_delta = rng.choice((delta,) * 9 + (-1, 2**31 - 1, -(2**31), 2**40))
    ms = rng.choice((0, 0, 0, 0, *_NUMBERS))
    return wire.record(value, key, delta=offset_delta, ms=ms, headers=_headers(rng))


def _headers(rng: random.Random) -> list[tuple[bytes, bytes | None]]:
    return [(rng.choice(_KEYS), rng.choice((None, b"", b"1", rng.randbytes(5)))) for _ in range(rng.randint(0, 3))]


def generate_headers(rng: random.Random) -> bytes:
    """Return a batch of valid events with headers of any kind."""
    records = [
        wire.record(rng.choice(NEIGHBOURS), delta=delta, headers=[_header(rng) for _ in range(rng.randint(0, 40))])
        for delta in range(rng.randint(1, 4))
    ]
    return bytes(wire.batch_of(records, codec=rng.choice((0, 0, 4)), first_ms=_NOON_MS))


def _header(rng: random.Random) -> tuple[bytes, bytes | None]:
    number = struct.pack(">I", rng.choice((0, 1, 2**31, 2**32 - 1)))
    key = rng.choice((*_KEYS, b"karmalake", b"value.schema.id", b"apicurio.value.globalId", rng.randbytes(4)))
    return key, rng.choice((None, b"", number, b"\0" + number, rng.randbytes(16), b"x" * 5_000))


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the header, the body, or both, and correct the CRC."""
    return wire.with_right_crc(mutate_bytes(rng, data, other))


def check(data: bytes) -> str:
    """Read the batch between two valid ones, and decode the result."""
    batch = wire.parsed(data)
    if batch is None:
        return "no batch"
    poison = replace(batch, base_offset=_POISON_OFFSET, length=None)
    fetched = bytes(_good(0, 0)) + bytes(poison) + bytes(_good(2, _LATER_OFFSET))
    polled, stopped = _poll(fetched)
    found = to_columns(polled, {3: 0}, "id")
    for columns in (found.records, found.unreadable):
        columns.validate(full=True)
    _check_places([found.records, found.unreadable], poison, stopped=stopped is not None)
    decoded = decode(found.records, CONTRACT)
    check_usable(decoded, CONTRACT)
    _check_neighbours(decoded.events, stopped=stopped is not None)
    demand(len(decoded.events) + len(decoded.rejected) == len(found.records), "rows are missing")
    details = "".join(shape(detail) for detail in found.unreadable["detail"].to_pylist())
    return f"stopped by {type(stopped).__name__}" if stopped else f"{len(found.records)} rows {details}"


def _good(first: int, offset: int) -> wire.Batch:
    records = [wire.record(NEIGHBOURS[first + n], GOOD[first + n]["user_id"].encode(), delta=n) for n in range(2)]
    return wire.batch_of(records, base_offset=offset, first_ms=_NOON_MS)


def _poll(fetched: bytes) -> tuple[list[Any], KafkaError | None]:
    """Return what our consumer returns for a fetch, and the error that ends it."""
    consumer = SimpleNamespace(_fetcher=Fetcher.__new__(Fetcher))
    install_raw_batches(consumer)
    partition = consumer._fetcher.PartitionRecords(0, TopicPartition("t", 3), MemoryRecords(fetched))
    polled: list[Any] = []
    try:
        for found in _takes(consumer._fetcher, partition):
            polled += found
    except KafkaError as error:
        return polled, error
    return polled, None


def _takes(fetcher: Any, partition: Any) -> Iterator[list[Any]]:
    """Yield the result of each poll, with a full memory budget per poll."""
    fetcher.remaining = replace(fetcher.budget)
    while partition and (found := partition.take(1)):
        yield found
        fetcher.remaining = replace(fetcher.budget)


def _check_places(tables: list[pa.Table], poison: wire.Batch, *, stopped: bool) -> None:
    """Check that each row has a distinct offset within its batch, and a valid time or null."""
    for table in tables:
        offsets = table["offset"].to_pylist()
        demand(offsets == sorted(set(offsets)), f"offsets repeat or decrease: {offsets[:9]}")
    offsets = sorted(offset for table in tables for offset in table["offset"].to_pylist())
    demand(len(offsets) == len(set(offsets)), f"an offset is both read and unread: {offsets[:9]}")
    last = _POISON_OFFSET + max(0, poison.records - 1 if poison.last_offset_delta is None else poison.last_offset_delta)
    poison_offsets = [offset for offset in offsets if offset not in {0, 1, _LATER_OFFSET, _LATER_OFFSET + 1}]
    demand(
        all(_POISON_OFFSET <= offset <= last for offset in poison_offsets),
        f"offsets outside the batch: {poison_offsets[:9]}",
    )
    demand(offsets[:2] == [0, 1], f"the batch before is lost; {stopped=}")
    for time in (time for table in tables for time in table["bus_time"].to_pylist()):
        demand(time is None or _MIN_TIME <= time <= _MAX_TIME, f"bus_time {time}")


def _check_neighbours(events: pa.Table, *, stopped: bool) -> None:
    found = {row["offset"]: event_of(row) for row in events.to_pylist()}
    places = {0: 0, 1: 1} if stopped else {0: 0, 1: 1, _LATER_OFFSET: 2, _LATER_OFFSET + 1: 3}
    for offset, number in places.items():
        demand(found.get(offset) == event_of(GOOD[number]), f"the neighbour {number} is lost or has other values")


_GOOD = bytes(wire.batch_of([wire.record(NEIGHBOURS[0], headers=[(b"h", b"1")])], first_ms=_NOON_MS))
TARGETS = {
    "batches": Target(generate, check, _GOOD, (KafkaError,), mutate, megabytes=1_024),  # a batch may be 128 MiB
    "headers": Target(generate_headers, check, _GOOD, (KafkaError,), mutate),
}
