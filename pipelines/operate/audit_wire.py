"""An event in the wire format of Protobuf, for the audit: read in plain Python, field by field.

The rulings are ingest's, kept by another reader (`tests/operate/test_audit_values.py` holds both together): fields of
another number or wire type are passed over, the later of two fields counts, groups may be nested MAX_GROUPS deep and
end in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines.contract.wire import MAX_GROUPS

_VARINT, _FIXED_64, _LENGTH, _GROUP, _GROUP_END, _FIXED_32 = range(6)
_NUMBER_BYTES = 10
_Field = tuple[int, int, int | bytes]
"""(number, wire type, value)"""


@dataclass(slots=True)
class WireEvent:
    """The fields of an event; what is absent is empty, the time None."""

    texts: dict[int, str] = field(default_factory=dict[int, str])
    event_time_us: int | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])


def read_wire(data: bytes) -> WireEvent:
    """Return the event that `data` is. Raises ValueError for bytes that are none."""
    event = WireEvent()
    for number, wire_type, value in _fields(data):
        if wire_type != _LENGTH or not isinstance(value, bytes):
            continue
        if number in {1, 2, 3}:
            event.texts[number] = value.decode()
        elif number == 4:
            event.event_time_us = _read_time(value)
        elif number == 5:
            key, text = _read_entry(value)
            event.metadata[key] = text
    return event


def _read_time(data: bytes) -> int:
    """Return a Timestamp in microseconds, cut towards zero."""
    found = {1: 0, 2: 0}
    found |= {number: value for number, kind, value in _fields(data) if kind == _VARINT and isinstance(value, int)}
    nanos = _signed(found[2], 32)
    return _signed(found[1], 64) * 1_000_000 + (nanos // 1_000 if nanos >= 0 else -(-nanos // 1_000))


def _read_entry(data: bytes) -> tuple[str, str]:
    found = {1: "", 2: ""}
    for number, _, value in _fields(data):
        if number in found and isinstance(value, bytes):
            found[number] = value.decode()
    return found[1], found[2]


def _fields(data: bytes) -> Iterator[_Field]:
    """Yield the fields of a message that stand in no group; those of 4 and 8 bytes without their value."""
    at, depth = 0, 0
    while at < len(data):
        key, at = _number(data, at)
        number, wire_type = key >> 3 & 0xFFFFFFFF, key & 7
        if not number:
            raise ValueError("a field has the number 0")
        value, at = _content(data, at, wire_type)
        depth += (wire_type == _GROUP) - (wire_type == _GROUP_END)
        if not 0 <= depth <= MAX_GROUPS:
            raise ValueError("a group ends that did not begin, or groups are nested too deep")
        if not depth and wire_type != _GROUP_END:
            yield number, wire_type, value
    if depth:
        raise ValueError("the value ends within a group")


def _content(data: bytes, at: int, wire_type: int) -> tuple[int | bytes, int]:
    match wire_type:
        case 0:
            return _number(data, at)
        case 2:
            size, at = _number(data, at)
            return _cut(data, at, size), at + size
        case 3 | 4:
            return 0, at
        case 1 | 5:
            size = 8 if wire_type == _FIXED_64 else 4
            _cut(data, at, size)
            return 0, at + size
        case _:
            raise ValueError("a field has a wire type that does not exist")


def _cut(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("the value ends within a field")
    return data[at : at + size]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a varint, of its 64 bits what they hold, and where it ends."""
    number = 0
    for place, byte in enumerate(data[at : at + _NUMBER_BYTES]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at + place + 1
    raise ValueError("a number does not end within ten bytes")


def _signed(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if number >> bits - 1 else number
