"""Messages of formats 0 and 1 (before Kafka 0.11): single or in a compressed set, every bound checked.

Brokers keep them in old logs. kafka-python decompresses such a set without a limit and follows the lengths it declares,
even backwards.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kafka.record.legacy_records import LegacyRecordBase

from pipelines.bus.inflate import MAX_DECOMPRESSED_BYTES, inflate

_OVERHEAD = struct.Struct(">qi")
_HEADER = struct.Struct(">Ibb")
_TIME = struct.Struct(">q")
_SIZE = struct.Struct(">i")
_CODECS = {LegacyRecordBase.CODEC_GZIP, LegacyRecordBase.CODEC_SNAPPY, LegacyRecordBase.CODEC_LZ4}


class Message(NamedTuple):
    """A decoded message."""

    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None


def read_messages(data: memoryview, magic: int, last_offset: int, max_messages: int) -> list[Message]:
    """Return the messages of a set whose last offset is known, ordered by offset.

    Raises ValueError for incomplete or invalid messages, and for a set that exceeds MAX_DECOMPRESSED_BYTES or
    `max_messages`.
    """
    try:
        (outer, codec, end) = _read(data, 0, magic)
        if end != len(data):
            raise ValueError("there are bytes after the message")
        found = [outer] if codec == LegacyRecordBase.CODEC_NONE else _read_set(outer, codec, magic, max_messages)
    except struct.error as error:
        raise ValueError(f"it is truncated: {error}") from error
    if [message.offset for message in found] != sorted({message.offset for message in found}):
        raise ValueError("its offsets are not in order")
    if found[-1].offset != last_offset or found[0].offset < 0:
        raise ValueError("its offsets do not match its header")
    return found


def _read_set(outer: Message, codec: int, magic: int, max_messages: int) -> list[Message]:
    if codec not in _CODECS or (magic == 0 and codec == LegacyRecordBase.CODEC_LZ4):
        raise ValueError(f"codec {codec} is not supported in format {magic}")
    inflated = inflate(codec, memoryview(outer.value or b""))
    if inflated is None:
        raise ValueError(f"it decompresses to more than {MAX_DECOMPRESSED_BYTES >> 20} MiB")
    inner: list[Message] = []
    for message in _walk(memoryview(inflated), magic):
        inner.append(message)
        if len(inner) > max_messages:
            raise ValueError(f"it holds more than {max_messages:,} messages")
    if not inner:
        raise ValueError("it is empty")
    base = outer.offset - inner[-1].offset if magic > 0 else 0
    return [message._replace(offset=message.offset + base) for message in inner]


def _walk(data: memoryview, magic: int) -> Iterator[Message]:
    at = 0
    while at < len(data):
        message, codec, at = _read(data, at, magic)
        if codec != LegacyRecordBase.CODEC_NONE:
            raise ValueError("a compressed set contains another")
        yield message


def _read(data: memoryview, at: int, magic: int) -> tuple[Message, int, int]:
    """Return the message at position `at`, its codec, and the position after it."""
    offset, length = _OVERHEAD.unpack_from(data, at)
    at += _OVERHEAD.size
    end = at + length
    if not _HEADER.size <= length <= len(data) - at:
        raise ValueError("a message extends beyond its set")
    _, found_magic, attributes = _HEADER.unpack_from(data, at)
    at += _HEADER.size
    if found_magic != magic or magic not in {0, 1}:
        raise ValueError(f"a message has format {found_magic}")
    time_ms = -1
    if magic == 1:
        (time_ms,) = _TIME.unpack_from(data, at)
        at += _TIME.size
    key, at = _read_field(data, at, end)
    value, at = _read_field(data, at, end)
    if at != end:
        raise ValueError("a message does not match its length")
    return Message(offset, time_ms, key, value), attributes & LegacyRecordBase.CODEC_MASK, end


def _read_field(data: memoryview, at: int, end: int) -> tuple[bytes | None, int]:
    (size,) = _SIZE.unpack_from(data, at)
    at += _SIZE.size
    if not -1 <= size <= end - at:
        raise ValueError("a field extends beyond its message")
    return (None, at) if size < 0 else (bytes(data[at : at + size]), at + size)
