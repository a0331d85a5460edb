"""Decoding: an invalid record gets a reason and a detail, and never affects another record (`not-blocked`)."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.contract.decode import Decoded, decode
from pipelines.contract.encode import encode
from pipelines.contract.event_pb2 import Event
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, POSITION, RECORD, REJECTED
from pipelines.lake.commit import describe_events
from pipelines.settings import ContractSettings

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DEFAULTS = ContractSettings()
_WITHOUT_DEADLINE = settings(deadline=None)  # the machine may be busy


@dataclass(frozen=True)
class Bad:
    """An invalid record: its value, the expected reason, and a part of the expected detail."""

    value: bytes | None
    reason: Reason
    message: str


def _valid(**fields: object) -> dict[str, object]:
    row = {"event_id": "e-1", "user_id": "u-1", "action_type": "A", "event_time": _NOON, "metadata": [("k", "v")]}
    return row | fields


def _bytes(**fields: object) -> bytes:
    return encode(pa.Table.from_pylist([_valid(**fields)], EVENT))[0].as_py()


_BAD = [
    Bad(None, Reason.NULL_VALUE, "has no value"),
    Bad(b"\xff\xff\xff\xff", Reason.UNDECODABLE, "is not a karmalake.v1.Event"),
    Bad(_bytes()[:-3], Reason.UNDECODABLE, "is not a karmalake.v1.Event"),
    Bad(b"\x0a\x02\xc3\x28", Reason.UNDECODABLE, "UTF-8"),
    Bad(b"", Reason.MISSING_EVENT_ID, "event_id is absent or empty"),
    Bad(_bytes(event_id=""), Reason.MISSING_EVENT_ID, "event_id is absent or empty"),
    Bad(_bytes(user_id=""), Reason.MISSING_USER_ID, "user_id is absent or empty"),
    Bad(_bytes(action_type=""), Reason.MISSING_ACTION_TYPE, "action_type is absent or empty"),
    Bad(_bytes(event_time=None), Reason.MISSING_TIMESTAMP, "timestamp is absent or empty"),
    Bad(_bytes(event_id="e" * 257), Reason.OVERSIZED_EVENT_ID, "event_id has 257 bytes; 256 are allowed"),
    Bad(_bytes(user_id="ü" * 129), Reason.OVERSIZED_USER_ID, "user_id has 258 bytes; 256 are allowed"),
    Bad(_bytes(action_type="A" * 129), Reason.OVERSIZED_ACTION_TYPE, "action_type has 129 bytes; 128 are allowed"),
    Bad(_bytes(metadata=[("k", "v" * 65_536)]), Reason.OVERSIZED_METADATA, "longer than 65536 bytes"),
    Bad(_bytes(event_time=_EARLIEST - _MICROSECOND), Reason.TIMESTAMP_TOO_EARLY, "is before 2000-01-01T00:00:00+00:00"),
    Bad(
        _bytes(event_time=_NOON + timedelta(days=1, microseconds=1)),
        Reason.TIMESTAMP_TOO_LATE,
        "(the producer's clock) is over 86400 s ahead of the record time on the bus, 2026-03-01T12:00:00+00:00.",
    ),
]


@pytest.mark.parametrize("bad", _BAD, ids=lambda bad: bad.reason)
def test_each_reason_has_a_detail_and_keeps_the_record(bad: Bad) -> None:
    """A rejected record keeps position, key, value and headers, and gets its reason and a detail."""
    records = _records([_Input(_bytes(event_id="before")), _Input(bad.value), _Input(_bytes(event_id="after"))])
    decoded = decode(records, _DEFAULTS)
    assert decoded.events["event_id"].to_pylist() == ["before", "after"]
    (rejected,) = decoded.rejected.to_pylist()
    assert rejected["reason"] == bad.reason
    assert bad.message in rejected["detail"]
    assert decoded.rejected.select(RECORD.names).equals(records.slice(1, 1))


def test_every_reason_is_tried() -> None:
    """The list above has every reason except those of strict_keys, of schema ids, of sources and of operators."""
    of_sources = {Reason.UNMAPPABLE, Reason.REFUSED_SELECT}
    others = {Reason.KEY_MISMATCH, Reason.UNKNOWN_SCHEMA, Reason.SKIPPED} | of_sources
    assert {bad.reason for bad in _BAD} == set(Reason) - others


@_WITHOUT_DEADLINE
@given(st.lists(st.one_of(st.none(), st.integers(0, len(_BAD) - 1)), max_size=60))
def test_outcomes_do_not_depend_on_neighbours(mixture: list[int | None]) -> None:
    """In any mixture of valid and invalid records, each has the outcome that it has alone, in the same order."""
    values = [_bytes(event_id=f"e-{n}") if bad is None else _BAD[bad].value for n, bad in enumerate(mixture)]
    decoded = decode(_records([_Input(value) for value in values]), _DEFAULTS)
    assert decoded.events["event_id"].to_pylist() == [f"e-{n}" for n, bad in enumerate(mixture) if bad is None]
    assert decoded.rejected["reason"].to_pylist() == [_BAD[bad].reason for bad in mixture if bad is not None]
    _assert_one_fate_each(decoded, len(mixture))


def test_errors_name_rows_of_the_batch() -> None:
    """Records are decoded in chunks: errors name the row in the batch, not in the chunk."""
    count, places = 5_000, [0, 1_023, 1_024, 3_000, 4_999]
    good = _bytes()
    decoded = decode(_records([_Input(b"\xff" if n in places else good) for n in range(count)]), _DEFAULTS)
    assert decoded.rejected["offset"].to_pylist() == places
    assert set(decoded.rejected["reason"].to_pylist()) == {Reason.UNDECODABLE}
    _assert_one_fate_each(decoded, count)


@_WITHOUT_DEADLINE
@given(st.lists(st.one_of(st.none(), st.binary(max_size=60)), max_size=20))
def test_random_bytes_never_raise(values: list[bytes | None]) -> None:
    """For any bytes, decoding terminates, and the record is in exactly one of the two tables."""
    _assert_one_fate_each(decode(_records([_Input(value) for value in values]), _DEFAULTS), len(values))


@_WITHOUT_DEADLINE
@given(st.binary(min_size=1, max_size=8), st.data())
def test_damaged_events_never_raise(damage: bytes, data: st.DataObject) -> None:
    """An event with overwritten bytes is decoded or rejected, and does not affect other records."""
    value = _bytes(metadata=[("rating", "5"), ("comment", "fine")])
    at = data.draw(st.integers(0, len(value) - 1))
    damaged = value[:at] + damage + value[at + len(damage) :]
    decoded = decode(_records([_Input(value), _Input(damaged), _Input(value)]), _DEFAULTS)
    _assert_one_fate_each(decoded, 3)
    assert {0, 2} <= set(decoded.events["offset"].to_pylist())


@_WITHOUT_DEADLINE
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999))
@example(round(2**64 / 1_000_000) + 1_700_000_000, 0)
@example(-round(2**64 / 1_000_000) + 1_700_000_000, 0)
def test_times_outside_the_calendar_are_rejected(seconds: int, nanos: int) -> None:
    """A timestamp far out of range is a dead letter; it neither overflows nor wraps to a valid time."""
    decoded = decode(_records([_Input(_timed(seconds, nanos))]), _DEFAULTS)
    _assert_one_fate_each(decoded, 1)
    exact = seconds * 1_000_000 + nanos // 1_000
    valid = _us(_EARLIEST) <= exact <= _us(_NOON + timedelta(days=1))
    assert decoded.events["event_time"].cast(pa.int64()).to_pylist() == ([exact] if valid else [])


@_WITHOUT_DEADLINE
@given(st.integers(-(2**31), -1) | st.integers(10**9, 2**31 - 1))
def test_nanoseconds_out_of_range_affect_no_other_record(nanos: int) -> None:
    """A timestamp that Protobuf defines as invalid has one outcome, and other records keep theirs."""
    decoded = decode(_records([_Input(_bytes()), _Input(_timed(1_700_000_000, nanos)), _Input(_bytes())]), _DEFAULTS)
    _assert_one_fate_each(decoded, 3)
    assert {0, 2} <= set(decoded.events["offset"].to_pylist())


@pytest.mark.parametrize(
    "fields",
    [
        {"event_id": "e" * 256},
        {"user_id": "ü" * 128},
        {"action_type": "A" * 128},
        {"metadata": [("k", "v" * 65_535)]},
        {"event_time": _EARLIEST},
        {"event_time": _NOON + timedelta(days=1)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_bounds_are_inclusive(fields: dict[str, object]) -> None:
    """A record exactly at a bound is an event."""
    assert len(decode(_records([_Input(_bytes(**fields))]), _DEFAULTS).events) == 1


def test_bounds_are_settings() -> None:
    """Each bound of the contract is a setting."""
    strict = ContractSettings(max_event_id_bytes=3, max_metadata_bytes=1, earliest=datetime(2026, 1, 1, tzinfo=UTC))
    values = [
        _bytes(event_id="e-10"),
        _bytes(event_id="e"),
        _bytes(event_id="e", metadata=[], event_time=_EARLIEST),
    ]
    reasons = decode(_records([_Input(value) for value in values]), strict).rejected["reason"].to_pylist()
    assert reasons == [Reason.OVERSIZED_EVENT_ID, Reason.OVERSIZED_METADATA, Reason.TIMESTAMP_TOO_EARLY]


_YEAR = timedelta(days=365)
_DAY = timedelta(days=1)
_AHEAD_OF_CLOCK = "ahead of this machine's clock, 2026-03-01T12:00:00+00:00"


@pytest.mark.parametrize(
    ("bus_time", "event_time", "clock"),
    [
        (_NOON, _NOON + _DAY, None),
        (_NOON - _YEAR, _NOON - _YEAR + _DAY, None),
        (_NOON - _YEAR, _NOON, "ahead of the record time on the bus, 2025-03-01T12:00:00+00:00."),
        (_NOON + _YEAR, _NOON + _DAY, None),
        (
            _NOON + _YEAR,
            _NOON + _YEAR,
            f"{_AHEAD_OF_CLOCK}; the record time 2027-03-01T12:00:00+00:00 is ahead of it too.",
        ),
        (None, _NOON + _DAY, None),
        (None, _NOON + _DAY + _MICROSECOND, f"{_AHEAD_OF_CLOCK}: the record has no valid record time."),
    ],
)
def test_a_time_ahead_is_bounded_by_the_earlier_clock(
    bus_time: datetime | None, event_time: datetime, clock: str | None
) -> None:
    """The bound is the earlier of record time and now, or now without a record time. The detail says which."""
    value = _bytes(event_time=event_time)
    decoded = decode(_records([_Input(value, bus_time=bus_time)]), _DEFAULTS, _NOON)
    assert decoded.rejected["reason"].to_pylist() == ([] if clock is None else [Reason.TIMESTAMP_TOO_LATE])
    assert all(clock in detail for detail in decoded.rejected["detail"].to_pylist() if clock)
    assert decoded.events["bus_time"].to_pylist() == ([bus_time] if clock is None else [])


@pytest.mark.parametrize(
    ("seconds", "reason", "message"),
    [
        (-62_135_596_800, None, ""),
        (-62_135_596_801, Reason.TIMESTAMP_TOO_EARLY, "-62135596801000000 us since 1970 is before 0001-01-01"),
        (253_402_300_799, None, ""),
        (253_402_300_800, Reason.TIMESTAMP_TOO_LATE, "is after the year 9999"),
        (9_000_000_000_000, Reason.TIMESTAMP_TOO_LATE, "is after the year 9999"),
    ],
)
def test_years_are_bounded_under_any_settings(seconds: int, reason: Reason | None, message: str) -> None:
    """The widest settings accept years 1 to 9999 only, so every accepted time can be sorted, stored and printed."""
    widest = ContractSettings(earliest=datetime(1, 1, 1, tzinfo=UTC), max_ahead_seconds=10_000 * 366 * 86_400)
    decoded = decode(_records([_Input(_bytes()), _Input(_timed(seconds, 0))]), widest, _NOON)
    assert decoded.rejected["reason"].to_pylist() == ([] if reason is None else [reason])
    assert all(message in detail for detail in decoded.rejected["detail"].to_pylist())
    described = describe_events(decoded.events)
    assert described["days"] == tuple(sorted({time.date() for time in decoded.events["event_time"].to_pylist()}))


def test_now_defaults_to_the_clock_of_this_machine() -> None:
    """If producer and broker are both a year ahead, this machine's clock still rejects the record."""
    ahead = datetime.now(UTC) + _YEAR
    decoded = decode(_records([_Input(_bytes(event_time=ahead), bus_time=ahead)]), _DEFAULTS)
    assert decoded.rejected["reason"].to_pylist() == [Reason.TIMESTAMP_TOO_LATE]


def test_events_keep_every_field() -> None:
    """An event keeps every field exactly, with its time truncated to microseconds, and its position."""
    value = _timed(1_700_000_000, 123_456_789, event_id="e-ü", metadata={"k": "v", "": "empty key"})
    decoded = decode(_records([_Input(value, key=b"u")]), _DEFAULTS)
    (row,) = decoded.events.to_pylist()
    assert decoded.events.schema.names == [*EVENT.names, *POSITION.names]
    assert (row["event_id"], row["user_id"], row["action_type"]) == ("e-ü", "u", "A")
    assert row["event_time"] == datetime.fromtimestamp(1_700_000_000, UTC) + timedelta(microseconds=123_456)
    assert dict(row["metadata"]) == {"k": "v", "": "empty key"}
    assert (row["topic_id"], row["topic"], row["topic_partition"], row["offset"]) == ("id", "events", 0, 0)


def test_a_repeated_metadata_key_keeps_the_last_value() -> None:
    """As Protobuf defines for maps: the last value of a repeated key counts; other rows are unchanged."""
    repeated = _bytes(metadata=[("a", "1"), ("b", "2")]) + _bytes(metadata=[("a", "3")])
    values = [_bytes(metadata=[("a", "0")]), repeated, _bytes(metadata=[])]
    decoded = decode(_records([_Input(value) for value in values]), _DEFAULTS)
    found = decoded.events["metadata"].to_pylist()
    assert [sorted(entries) for entries in found] == [[("a", "0")], [("a", "3"), ("b", "2")], []]


def test_unknown_fields_are_ignored() -> None:
    """Events of a producer with a newer schema are decoded, as Protobuf defines."""
    decoded = decode(_records([_Input(_bytes() + b"\x9a\x06\x03new")]), _DEFAULTS)
    assert decoded.events["event_id"].to_pylist() == ["e-1"]


def test_a_mis_keyed_event_is_accepted_and_marked() -> None:
    """A record whose key is missing or differs from its user_id is an event, and counted as mis-keyed."""
    inputs = [_Input(_bytes(), key=key) for key in (b"u-1", b"other", None)]
    decoded = decode(_records([*inputs, _Input(b"\xff", key=b"x")]), _DEFAULTS)
    assert decoded.mis_keyed.to_pylist() == [False, True, True]
    assert len(decoded.events) == 3


def test_strict_keys_reject_a_mis_keyed_event() -> None:
    """With strict_keys a wrong or missing key is a dead letter that names the user."""
    inputs = [_Input(_bytes(), key=key) for key in (b"u-1", b"other", None)]
    decoded = decode(_records(inputs), ContractSettings(strict_keys=True))
    assert decoded.rejected["reason"].to_pylist() == [Reason.KEY_MISMATCH] * 2
    assert "'u-1'" in decoded.rejected["detail"][0].as_py()
    assert decoded.mis_keyed.to_pylist() == [False]


def test_no_records() -> None:
    """An empty batch gives two empty tables with the right columns."""
    decoded = decode(RECORD.empty_table(), _DEFAULTS)
    assert (len(decoded.events), len(decoded.rejected), len(decoded.mis_keyed)) == (0, 0, 0)
    assert decoded.rejected.schema == REJECTED


@dataclass(frozen=True)
class _Input:
    value: bytes | None
    key: bytes | None = b"u-1"
    headers: list[dict[str, object]] = field(default_factory=lambda: [{"key": "trace", "value": b"\x00\xff"}])
    bus_time: datetime | None = _NOON


def _records(inputs: list[_Input]) -> pa.Table:
    rows = [
        {
            "topic_id": "id",
            "topic": "events",
            "topic_partition": 0,
            "offset": offset,
            "bus_time": record.bus_time,
            "key": record.key,
            "value": record.value,
            "headers": record.headers,
        }
        for offset, record in enumerate(inputs)
    ]
    return pa.Table.from_pylist(rows, RECORD)


def _timed(seconds: int, nanos: int, event_id: str = "e", metadata: dict[str, str] | None = None) -> bytes:
    event = Event(event_id=event_id, user_id="u", action_type="A", metadata=metadata)
    event.timestamp.seconds, event.timestamp.nanos = seconds, nanos
    return event.SerializeToString()


def _assert_one_fate_each(decoded: Decoded, count: int) -> None:
    places = decoded.events["offset"].to_pylist() + decoded.rejected["offset"].to_pylist()
    assert sorted(places) == list(range(count))
    assert len(decoded.mis_keyed) == len(decoded.events)
    assert all(decoded.rejected["detail"].to_pylist())
    assert decoded.rejected.schema == REJECTED


def _us(instant: datetime) -> int:
    return int((instant - datetime(1970, 1, 1, tzinfo=UTC)) / _MICROSECOND)
