"""Messages of the formats before Kafka 0.11: one, or a compressed set of them, with every bound checked.

Brokers keep them in old logs. kafka-python decompresses such a set whole and walks it by the lengths that it names,
backwards too.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kafka.record.legacy_records import LegacyRecordBase

from pipelines.bus.inflate import MOST_BYTES, inflate

_OVERHEAD = struct.Struct(">qi")
_HEADER = struct.Struct(">Ibb")
_TIME = struct.Struct(">q")
_SIZE = struct.Struct(">i")
_CODECS = {LegacyRecordBase.CODEC_GZIP, LegacyRecordBase.CODEC_SNAPPY, LegacyRecordBase.CODEC_LZ4}


class Message(NamedTuple):
    """What one message holds."""

    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None


def read_messages(data: memoryview, magic: int, last_offset: int, most: int) -> list[Message]:
    """Return the messages of a set whose last offset is known, in order of their offsets.

    Raises ValueError for bytes that are not whole messages, or become more than MOST_BYTES or `most` messages.
    """
    try:
        (outer, codec, end) = _read(data, 0, magic)
        if end != len(data):
            raise ValueError("bytes behind the message")
        found = [outer] if codec == LegacyRecordBase.CODEC_NONE else _read_set(outer, codec, magic, most)
    except struct.error as error:
        raise ValueError(f"it ends too early: {error}") from error
    if [message.offset for message in found] != sorted({message.offset for message in found}):
        raise ValueError("its offsets are not in order")
    if found[-1].offset != last_offset or found[0].offset < 0:
        raise ValueError("its offsets are not what it names")
    return found


def _read_set(outer: Message, codec: int, magic: int, most: int) -> list[Message]:
    if codec not in _CODECS or (magic == 0 and codec == LegacyRecordBase.CODEC_LZ4):
        raise ValueError(f"codec {codec} of format {magic} is not read")
    inflated = inflate(codec, memoryview(outer.value or b""))
    if inflated is None:
        raise ValueError(f"it becomes more than {MOST_BYTES >> 20} MiB")
    inner: list[Message] = []
    for message in _walk(memoryview(inflated), magic):
        inner.append(message)
        if len(inner) > most:
            raise ValueError(f"it holds more than {most:,} messages")
    if not inner:
        raise ValueError("it holds no message")
    base = outer.offset - inner[-1].offset if magic > 0 else 0
    return [message._replace(offset=message.offset + base) for message in inner]


def _walk(data: memoryview, magic: int) -> Iterator[Message]:
    at = 0
    while at < len(data):
        message, codec, at = _read(data, at, magic)
        if codec != LegacyRecordBase.CODEC_NONE:
            raise ValueError("a set within a set")
        yield message


def _read(data: memoryview, at: int, magic: int) -> tuple[Message, int, int]:
    """Return the message at a place, its codec, and the place behind it."""
    offset, length = _OVERHEAD.unpack_from(data, at)
    at += _OVERHEAD.size
    end = at + length
    if not _HEADER.size <= length <= len(data) - at:
        raise ValueError("a message is not within its set")
    _, found_magic, attributes = _HEADER.unpack_from(data, at)
    at += _HEADER.size
    if found_magic != magic or magic not in {0, 1}:
        raise ValueError(f"a message of the format {found_magic}")
    time_ms = -1
    if magic == 1:
        (time_ms,) = _TIME.unpack_from(data, at)
        at += _TIME.size
    key, at = _sized(data, at, end)
    value, at = _sized(data, at, end)
    if at != end:
        raise ValueError("a message is not what its length says")
    return Message(offset, time_ms, key, value), attributes & LegacyRecordBase.CODEC_MASK, end


def _sized(data: memoryview, at: int, end: int) -> tuple[bytes | None, int]:
    (size,) = _SIZE.unpack_from(data, at)
    at += _SIZE.size
    if not -1 <= size <= end - at:
        raise ValueError("a field is not within its message")
    return (None, at) if size < 0 else (bytes(data[at : at + size]), at + size)
