"""Values encoded in bulk are decoded equally by the Protobuf runtime."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract import event_pb2
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT

_text = st.text(st.characters(codec="utf-8"), max_size=12)
_rows = st.fixed_dictionaries(
    {
        "event_id": st.none() | _text,
        "user_id": st.none() | _text,
        "action_type": st.none() | _text,
        "event_time": st.none() | st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),
        "metadata": st.none() | st.dictionaries(_text, _text, max_size=3).map(lambda entries: list(entries.items())),
    }
)


def _message(row: dict) -> event_pb2.Event:
    texts = {name: row[name] or "" for name in ("event_id", "user_id", "action_type")}
    message = event_pb2.Event(**texts, metadata=dict(row["metadata"] or []))
    if row["event_time"] is not None:
        message.timestamp.CopyFrom(Timestamp())
        message.timestamp.FromMicroseconds(row["event_time"])
    return message


@given(st.lists(_rows, min_size=1, max_size=20), st.integers(0, 19))
def test_encoded_events_are_what_protobuf_reads(rows: list[dict], start: int) -> None:
    """Any row: any text, any microsecond of the years 1 to 9999, nulls; sliced tables too."""
    events = pa.Table.from_pylist(rows, schema=EVENT)
    expected = [_message(row) for row in rows[start:]]
    assert [event_pb2.Event.FromString(value) for value in encode(events.slice(start)).to_pylist()] == expected


def test_a_table_of_several_chunks_keeps_its_order() -> None:
    """Chunks of a table are encoded one after another."""
    time = datetime(2010, 11, 8, 18, 45, 11, 728361, tzinfo=UTC)
    rows = [
        {"event_id": str(number), "user_id": "u", "action_type": "A", "event_time": time + timedelta(days=number)}
        for number in range(6)
    ]
    chunks = [pa.Table.from_pylist(rows[start : start + 2], schema=EVENT) for start in (0, 2, 4)]
    values = encode(pa.concat_tables(chunks)).to_pylist()
    decoded = [event_pb2.Event.FromString(value) for value in values]
    assert [message.event_id for message in decoded] == list("012345")
    assert decoded[0].timestamp.ToMicroseconds() == 1_289_241_911_728_361


def test_no_events_give_no_values() -> None:
    """An empty table is allowed."""
    assert encode(EVENT.empty_table()).to_pylist() == []
