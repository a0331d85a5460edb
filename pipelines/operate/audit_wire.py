"""Protobuf decoder of the audit: reads an event from the wire format in plain Python, field by field.

Implements the same rules as ingest's decoder independently (`tests/operate/test_audit_values.py` compares the two):
fields of another number or wire type are skipped, the last of repeated fields wins, groups may be nested MAX_GROUPS
deep and end in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines.contract.wire import MAX_GROUPS

_VARINT, _FIXED_64, _LENGTH, _GROUP, _GROUP_END, _FIXED_32 = range(6)
_MAX_VARINT_BYTES = 10
_Field = tuple[int, int, int | bytes]
"""(number, wire type, value)"""


@dataclass(slots=True)
class WireEvent:
    """The fields of an event; an absent field is empty, an absent time None."""

    texts: dict[int, str] = field(default_factory=dict[int, str])
    event_time_us: int | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])


def read_wire(data: bytes) -> WireEvent:
    """Return the event in `data`. Raises ValueError for malformed bytes."""
    event, time_parts = WireEvent(), {1: 0, 2: 0}
    for number, wire_type, value in _fields(data):
        if wire_type != _LENGTH or not isinstance(value, bytes):
            continue
        if number in {1, 2, 3}:
            event.texts[number] = value.decode()
        elif number == 4:
            time_parts |= {part: it for part, kind, it in _fields(value) if kind == _VARINT and isinstance(it, int)}
            event.event_time_us = _microseconds(time_parts)
        elif number == 5:
            key, text = _read_entry(value)
            event.metadata[key] = text
    return event


def _microseconds(time_parts: dict[int, int]) -> int:
    """Return the fields of a Timestamp in microseconds since 1970, truncated towards zero."""
    nanos = _signed(time_parts[2], 32)
    return _signed(time_parts[1], 64) * 1_000_000 + (nanos // 1_000 if nanos >= 0 else -(-nanos // 1_000))


def _read_entry(data: bytes) -> tuple[str, str]:
    found = {1: "", 2: ""}
    for number, _, value in _fields(data):
        if number in found and isinstance(value, bytes):
            found[number] = value.decode()
    return found[1], found[2]


def _fields(data: bytes) -> Iterator[_Field]:
    """Yield the fields of a message that are in no group; the value of a fixed-size field is 0."""
    at, depth = 0, 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3 & 0xFFFFFFFF, key & 7
        if not number:
            raise ValueError("a field number is 0")
        value, at = _content(data, at, wire_type)
        depth += (wire_type == _GROUP) - (wire_type == _GROUP_END)
        if not 0 <= depth <= MAX_GROUPS:
            raise ValueError("a group ends without a start, or groups are nested too deep")
        if not depth and wire_type != _GROUP_END:
            yield number, wire_type, value
    if depth:
        raise ValueError("the value ends within a group")


def _content(data: bytes, at: int, wire_type: int) -> tuple[int | bytes, int]:
    match wire_type:
        case 0:
            return _varint(data, at)
        case 2:
            size, at = _varint(data, at)
            return _slice(data, at, size), at + size
        case 3 | 4:
            return 0, at
        case 1 | 5:
            size = 8 if wire_type == _FIXED_64 else 4
            _slice(data, at, size)
            return 0, at + size
        case _:
            raise ValueError("a field has an unknown wire type")


def _slice(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("the value ends within a field")
    return data[at : at + size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at a position, modulo 2^64, and the position after it."""
    number = 0
    for index, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at + index + 1
    raise ValueError("a varint is longer than ten bytes")


def _signed(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if number >> bits - 1 else number
