"""Record batches (format 2) with arbitrary header fields and a valid CRC."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from crc32c import crc32c
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode

Headers = Sequence[tuple[bytes, bytes | None]]
_HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = _HEADER.size
NO_COMPRESSION, GZIP, SNAPPY, LZ4, ZSTD = range(5)
_ENCODE: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip_encode, snappy_encode, lz4_encode, zstd_encode)


@dataclass(frozen=True, slots=True)
class Batch:
    """The fields of a batch; `body` is the records, compressed according to `attributes`."""

    body: bytes
    records: int
    base_offset: int = 0
    last_offset_delta: int | None = None
    """None means records - 1."""
    first_ms: int = 0
    max_ms: int = 0
    attributes: int = 0
    leader_epoch: int = 0
    magic: int = 2
    producer_id: int = -1
    producer_epoch: int = -1
    base_sequence: int = -1
    length: int | None = None
    """None means the actual length of what follows."""

    def __bytes__(self) -> bytes:
        last = max(self.records - 1, -(2**31)) if self.last_offset_delta is None else self.last_offset_delta
        checked = struct.pack(
            ">hiqqqhii", self.attributes, last, self.first_ms, self.max_ms,
            self.producer_id, self.producer_epoch, self.base_sequence, self.records,
        ) + self.body  # fmt: skip
        length = 9 + len(checked) if self.length is None else self.length
        head = struct.pack(">qiibI", self.base_offset, length, self.leader_epoch, self.magic, crc32c(checked))
        return head + checked


def parsed(data: bytes) -> Batch | None:
    """Return the batch at the start of the bytes; None if they are too short for a header."""
    if len(data) < HEADER_BYTES:
        return None
    base, length, epoch, magic, _, attributes, last, first_ms, max_ms, producer, producer_epoch, sequence, count = (
        _HEADER.unpack_from(data)
    )
    return Batch(
        data[HEADER_BYTES:], count, base, last, first_ms, max_ms, attributes, epoch, magic, producer, producer_epoch,
        sequence, length,
    )  # fmt: skip


def with_right_crc(data: bytes) -> bytes:
    """Return bytes with the right CRC and length: brokers check nothing else."""
    batch = parsed(data)
    return data if batch is None else bytes(replace(batch, length=None))


def record(
    value: bytes | None, key: bytes | None = b"k", *, delta: int = 0, ms: int = 0, headers: Headers = ()
) -> bytes:
    """Return one record in its wire format."""
    inner = b"\0" + zigzag(ms) + zigzag(delta) + _sized(key) + _sized(value) + zigzag(len(headers))
    inner += b"".join(_sized(name) + _sized(content) for name, content in headers)
    return zigzag(len(inner)) + inner


def batch_of(
    records: Sequence[bytes], *, codec: int = NO_COMPRESSION, base_offset: int = 0, first_ms: int = 0
) -> Batch:
    """Return a batch of records."""
    body = _ENCODE[codec](b"".join(records))
    return Batch(body, len(records), base_offset, first_ms=first_ms, max_ms=first_ms, attributes=codec)


def zigzag(number: int) -> bytes:
    """Return a signed varint."""
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _sized(data: bytes | None) -> bytes:
    return zigzag(-1) if data is None else zigzag(len(data)) + data
