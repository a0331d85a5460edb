"""Notifications and ingest agree on records: exactly the dead letters of ingest are malformed here."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from pipelines.contract.decode import Decoded, decode
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.ingest.record_batches import to_columns
from pipelines.notify.events import decode_events
from pipelines.settings import ContractSettings
from tests.bus.test_records import Key
from tests.ingest.hostile_batches import Records, build, guarded, hostile, polled

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)
_DAYS_MS = 3 * 86_400_000
"""More than an event may be ahead of its record."""
_KNOWN_TIMES_MS = [0, 1, 946_684_799_999, 946_684_800_000, NOON_MS, NOON_MS * 1_000, 2**62]
_TIMES_MS = st.sampled_from(_KNOWN_TIMES_MS) | st.integers(0, 2**62)


def _value(event_id: str = "e-1", time: datetime = NOON, **metadata: str) -> bytes:
    row = {"event_id": event_id, "user_id": "u", "action_type": "A", "event_time": time}
    return encode(pa.Table.from_pylist([row | {"metadata": [*metadata.items()]}], EVENT)).to_pylist()[0]


_EVENT_TIMES = st.sampled_from([NOON, NOON + timedelta(days=400), datetime(1999, 12, 31, tzinfo=UTC)]) | st.integers(
    0, 250_000_000_000
).map(lambda seconds: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=seconds % 1_000_000))
_VALUES = (
    st.none()
    | st.binary(max_size=40)
    | st.builds(_value, st.text(max_size=4), _EVENT_TIMES, n=st.text(max_size=4))
    | st.builds(_value, st.just("x" * 300), st.just(NOON))
    | st.just(_value(n="x" * 100_000))
)
_HEADERS = st.lists(
    st.tuples(st.text(max_size=5) | st.binary(min_size=1, max_size=4).map(Key), st.none() | st.binary(max_size=5)),
    max_size=3,
)
_KEYS = st.sampled_from([None, b"u", b"\xff"])
_RECORDS = st.lists(st.tuples(_TIMES_MS, _KEYS, _VALUES, _HEADERS), min_size=1, max_size=8)
_BASE = 7


def _as_notify_reads(data: bytes) -> list[Any]:
    return [
        ConsumerRecord("t", 3, -1, r.offset, r.timestamp, 0, r.key, r.value, r.headers, None, 0, 0, 0)
        for r in guarded(data)
    ]


@given(records=_RECORDS, codec=st.integers(0, 4), strict_keys=st.booleans())
@example(records=[(NOON_MS - _DAYS_MS, b"u", _value(), [])], codec=0, strict_keys=False)
@example(records=[(2**62, b"u", _value(), [])], codec=0, strict_keys=False)
@example(records=[(0, b"u", _value(), []), (NOON_MS, b"u", _value(), [])], codec=0, strict_keys=False)
def test_a_record_is_classified_as_in_ingest(records: Records, codec: int, strict_keys: bool) -> None:
    """For any time, key, value and headers; and the event sent is the one that ingest stores."""
    contract = ContractSettings(strict_keys=strict_keys)
    _assert_judged_alike(build(records, codec, _BASE), _BASE, contract)


@given(seed=st.integers(0, 2**32))
def test_a_batch_is_classified_as_in_ingest(seed: int) -> None:
    """Also damaged batches, batches with a wrong record count, and decompression bombs."""
    _assert_judged_alike(hostile(seed), 0, ContractSettings())


def _assert_judged_alike(data: bytes, start: int, contract: ContractSettings) -> None:
    understood = decode_events(_as_notify_reads(data), contract)
    read = to_columns(polled(data), {3: start}, "id")
    ingested = decode(read.records, contract)
    by_offset = {record.offset: event for record, event in understood.events}
    assert list(by_offset) == ingested.events["offset"].to_pylist()
    assert understood.malformed == len(ingested.rejected) + len(read.unreadable)
    for name in ("event_id", "user_id", "action_type"):
        assert [getattr(event, name) for event in by_offset.values()] == ingested.events[name].to_pylist()
    assert [event.metadata for event in by_offset.values()] == list(map(dict, ingested.events["metadata"].to_pylist()))
    times = [datetime.fromisoformat(event.event_time) for event in by_offset.values()]
    assert times == ingested.events["event_time"].to_pylist()


def test_headers_reach_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may contain the id of the writer's schema."""
    parsed_headers: list[Any] = []

    def spy(records: pa.Table, contract: ContractSettings) -> Decoded:
        parsed_headers.extend(records["headers"].to_pylist())
        return decode(records, contract)

    monkeypatch.setattr("pipelines.notify.events.decode", spy)
    data = build([(NOON_MS, b"u", _value(), [("schema", b"7"), ("none", None)])])
    decode_events(_as_notify_reads(data), ContractSettings())
    assert parsed_headers == [[{"key": "schema", "value": b"7"}, {"key": "none", "value": None}]]
