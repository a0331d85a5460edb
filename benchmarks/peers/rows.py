"""Events as Python objects to the rows and columns that the peers in Python write."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipelines.contract.event_pb2 import Event

SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("action_type", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("metadata", pa.map_(pa.string(), pa.string())),
    ]
)


def to_columns(rows: list[tuple[Any, ...]]) -> pa.Table:
    """Return rows, at least one, as columns of SCHEMA."""
    columns = zip(zip(*rows, strict=True), SCHEMA, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in columns], SCHEMA)


def as_row(event: Event) -> tuple[Any, ...]:
    """Return the values of SCHEMA."""
    time = event.timestamp
    microseconds = time.seconds * 1_000_000 + time.nanos // 1000
    return event.event_id, event.user_id, event.action_type, microseconds, list(event.metadata.items())


def as_row_of_json(event: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values of SCHEMA of a parsed JSON object."""
    time = datetime.fromisoformat(event["timestamp"])
    return event["event_id"], event["user_id"], event["action_type"], time, list(event["metadata"].items())


def decode_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Turn batches of one column of values into batches of SCHEMA."""
    for batch in batches:
        rows = [as_row(Event.FromString(value)) for value in batch.column(0).to_pylist()]
        if rows:
            yield from to_columns(rows).to_batches()
