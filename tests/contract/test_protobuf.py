"""Bulk decoding gives the events that Protobuf's own runtime gives."""

import pyarrow as pa
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.event_pb2 import Event
from pipelines.contract.protobuf import parse_protobuf
from pipelines.operate.audit_wire import read_wire

_TEXTS = st.text(max_size=12)
_SECONDS = st.integers(-62_135_596_800, 253_402_300_799)  # the years 1 to 9999


@st.composite
def _events(draw: st.DrawFn) -> Event:
    texts = {name: draw(_TEXTS) for name in ("event_id", "user_id", "action_type")}
    event = Event(**texts, metadata=draw(st.dictionaries(_TEXTS, _TEXTS, max_size=4)))
    if draw(st.booleans()):
        event.timestamp.seconds, event.timestamp.nanos = draw(_SECONDS), draw(st.integers(0, 999_999_999))
    return event


@given(st.lists(_events(), max_size=8))
def test_events_of_the_runtime_are_decoded_equally(events: list[Event]) -> None:
    """Any text, also empty, any map, absent fields, and any valid time, truncated to microseconds."""
    parsed = parse_protobuf(pa.array([event.SerializeToString() for event in events], pa.binary()))
    assert parsed.errors == {}
    for name in ("event_id", "user_id", "action_type"):
        assert parsed.events[name].to_pylist() == [getattr(event, name) for event in events]
    assert [dict(entries) for entries in parsed.events["metadata"].to_pylist()] == [dict(e.metadata) for e in events]
    assert parsed.events["event_time"].cast(pa.int64()).to_pylist() == [_microseconds(event) for event in events]


@given(_events(), st.data())
def test_bytes_that_the_runtime_decodes_are_decoded(event: Event, data: st.DataObject) -> None:
    """Whatever the bytes, no value that Protobuf's runtime decodes is rejected as undecodable.

    The reverse differs: some unknown fields that the runtime rejects are accepted.
    """
    value = bytearray(event.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value)))
        value[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        expected = Event.FromString(bytes(value))
    except DecodeError:
        return
    parsed = parse_protobuf(pa.array([bytes(value)], pa.binary()))
    assert parsed.errors == {}
    for name in ("event_id", "user_id", "action_type"):
        assert parsed.events[name].to_pylist() == [getattr(expected, name)]


@given(
    st.lists(st.tuples(st.none() | st.just(b"note") | _SECONDS, st.none() | st.integers(0, 999_999_999)), max_size=4)
)
def test_parts_of_a_timestamp_are_merged(parts: list[tuple[int | bytes | None, int | None]]) -> None:
    """As the runtime and the audit do, whatever a part lacks; other messages, in groups and maps, do not count."""
    value = Event(event_id="e", user_id="u", action_type="A", metadata={"k": "v"}).SerializeToString()
    value += b"\x33\x22\x02\x08\x01\x34"  # field 6, a group with a field 4
    for seconds, nanos in parts:
        part = Event()
        part.timestamp.SetInParent()
        if isinstance(seconds, int):
            part.timestamp.seconds = seconds
        if nanos is not None:
            part.timestamp.nanos = nanos
        inner = part.timestamp.SerializeToString() + (b"\x0a\x04note" if seconds == b"note" else b"")
        value += b"\x22" + bytes([len(inner)]) + inner
    parsed = parse_protobuf(pa.array([b"", value, b"\x0a"], pa.binary()))
    expected = _microseconds(Event.FromString(value))
    assert list(parsed.errors) == [2]
    assert parsed.events["event_time"].cast(pa.int64()).to_pylist() == [None, expected, None]
    assert parsed.events["metadata"].to_pylist()[1] == [("k", "v")]
    assert read_wire(value).event_time_us == expected


def _microseconds(event: Event) -> int | None:
    if not event.HasField("timestamp"):
        return None
    return event.timestamp.seconds * 1_000_000 + event.timestamp.nanos // 1_000
