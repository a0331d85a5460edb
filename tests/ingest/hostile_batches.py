"""Record batches of a hostile producer: valid batches, mutated, with a correct checksum.

As a program (`python -m tests.ingest.hostile_batches ROUNDS SEED`) it reads ROUNDS batches by both readers and fails if
they differ; with `NUMBA_BOUNDSCHECK=1` every access of the compiled loops is checked.
"""

import random
import struct
import sys
from typing import Any

from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.consumer.fetcher import ConsumerRecord
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.util import calc_crc32c, encode_varint

from pipelines.bus.records import SafeBatch, SafeMessageSet, TypedBatches
from pipelines.ingest.record_batches import Polled, _RawBatch, _RawMessageSet, to_columns

Records = list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]]
HEADER = DefaultRecordBatch.HEADER_STRUCT
ENCODERS: list[Any] = [bytes, gzip_encode, snappy_encode, lz4_encode, zstd_encode]
_HEADER_INDEX = {"attributes": 5, "last_offset_delta": 6, "first_timestamp": 7, "max_timestamp": 8, "records_count": 12}
_ODD = (0, 1, -1, -2, 2**31 - 1, -(2**31), 127, 128, 1_000_000, 1_000_001)
_ODD_TIMES = (0, -1, 2**63 - 1, -(2**63), 2**62, -(2**61) - 1, 1_700_000_000_000_000_000, 1_700_000_000_000)


def build(records: Records, codec: int = 0, base_offset: int = 0) -> bytes:
    """Return a batch as kafka-python writes it."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
    for delta, (timestamp, key, value, headers) in enumerate(records):
        assert builder.append(delta, timestamp, key, value, headers) is not None
    data = builder.build()
    data[:8] = base_offset.to_bytes(8, "big")  # brokers write it, so the CRC does not cover it
    return bytes(data)


def rebuilt(batch: bytes, payload: bytes | None = None, **header: int) -> bytes:
    """Return a batch with another payload and other header fields, and the matching checksum."""
    fields = list(HEADER.unpack_from(batch))
    payload = batch[HEADER.size :] if payload is None else payload
    for name, value in header.items():
        fields[_HEADER_INDEX[name]] = value
    fields[1] = HEADER.size - 12 + len(payload)
    data = bytearray(HEADER.pack(*fields) + payload)
    data[17:21] = struct.pack(">I", calc_crc32c(bytes(data[21:])))
    return bytes(data)


def varint(value: int) -> bytes:
    """Return a zig-zag varint."""
    written = bytearray()
    encode_varint(value, written.append)
    return bytes(written)


def hostile(seed: int) -> bytes:
    """Return a batch of a few records, mutated in its header, its records or its compressed bytes."""
    random_ = random.Random(seed)  # noqa: S311 - nothing secret
    codec = random_.randrange(5)
    records = [_record(random_) for _ in range(random_.randint(1, 6))]
    plain = build(records, 0, random_.choice((0, 7, 2**40)))
    payload = _mutated(random_, plain[HEADER.size :], random_.choice((0, 0, 1, 3)))
    if payload or codec != 2:
        payload = ENCODERS[codec](payload)
    payload = _mutated(random_, payload, random_.choice((0, 0, 0, 2)))
    changed = {name: _odd(random_, name) for name in _HEADER_INDEX if name != "attributes" and random_.random() < 0.15}
    attributes = codec if random_.random() < 0.9 else random_.randrange(16)
    return rebuilt(plain, payload, attributes=attributes, **changed)


def _record(random_: random.Random) -> tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    def some(max_bytes: int) -> bytes | None:
        return None if random_.random() < 0.1 else random_.randbytes(random_.randint(0, max_bytes))

    headers = [(f"h{n}", some(5)) for n in range(random_.randint(0, 3))]
    return random_.choice((1_700_000_000_000, 0, 2**40, *_ODD_TIMES[6:])), some(20), some(200), headers


def _odd(random_: random.Random, name: str) -> int:
    return random_.choice(_ODD_TIMES if name.endswith("timestamp") else _ODD)


def _mutated(random_: random.Random, data: bytes, times: int) -> bytes:
    changed = bytearray(data)
    for _ in range(times if changed else 0):
        at = random_.randrange(len(changed))
        match random_.randrange(4):
            case 0:
                changed[at] = random_.randrange(256)
            case 1:
                del changed[at : at + random_.randint(1, 8)]
            case 2:
                changed[at:at] = varint(random_.choice(_ODD + _ODD_TIMES))
            case _:
                changed[at : at + 10] = b"\xff" * random_.randint(1, 10)
        if not changed:
            break
    return bytes(changed)


def polled(data: bytes) -> list[ConsumerRecord]:
    """Return what ingest's consumer returns for these bytes of a fetch."""
    return [
        ConsumerRecord("t", 3, -1, r.offset, r.timestamp, 0, r.key, r.value, r.headers, None, 0, 0, 0)
        for r in _read(data, _RawBatch, _RawMessageSet)
    ]


def guarded(data: bytes) -> list[Any]:
    """Return what any other consumer reads from them, record by record."""
    return _read(data, SafeBatch, SafeMessageSet)


def _read(data: bytes, *kinds: Any) -> list[Any]:
    records: list[Any] = []
    batches = TypedBatches(MemoryRecords(data), *kinds)
    while (batch := batches.next_batch()) is not None:
        assert batch.validate_crc()
        records += batch
    return records


def assert_readers_agree(data: bytes) -> Polled:
    """Assert that both readers see the same records, and one record without a value for each invalid batch."""
    columns = to_columns(polled(data), {3: 0}, "id")
    names = ("offset", "key", "value")
    by_columns = list(zip(*(columns.records[name].to_pylist() for name in names), strict=True))
    unread = [(offset, None, None) for offset in columns.unreadable["offset"].to_pylist()]
    read = [(r.offset, r.key, r.value) for r in guarded(data)]
    assert sorted(read, key=_first) == sorted(by_columns + unread, key=_first)
    assert all(time is None or 2000 <= time.year <= 9999 for time in columns.records["bus_time"].to_pylist())
    return columns


def _first(record: tuple[int, object, object]) -> int:
    return record[0]


def main(rounds: int, seed: int) -> None:
    """Read `rounds` batches and print how many were valid."""
    valid = 0
    for number in range(seed, seed + rounds):
        valid += not len(assert_readers_agree(hostile(number)).unreadable)
    sys.stdout.write(f"{rounds} batches, {valid} valid\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
