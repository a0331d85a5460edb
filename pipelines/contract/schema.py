"""The Arrow schemas of events and of the records that carry them.

All stages exchange events as Arrow tables with these columns, never as objects.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import pyarrow as pa
import pyarrow.compute as pc

TIMESTAMP = pa.timestamp("us", tz="UTC")
METADATA = pa.map_(pa.string(), pa.string())
HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))

EVENT = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("action_type", pa.string()),
        ("event_time", TIMESTAMP),
        ("metadata", METADATA),
    ]
)
"""The fields of an event. `event_time` is the `timestamp` of the contract, truncated to whole microseconds."""

POSITION = pa.schema(
    [
        ("topic_id", pa.string()),
        ("topic", pa.string()),
        ("topic_partition", pa.int32()),
        ("offset", pa.int64()),
        ("bus_time", TIMESTAMP),
    ]
)
"""The position of a record on the bus, and its bus time. Several events may have been made of one record."""

RECORD = pa.schema([*POSITION, ("key", pa.binary()), ("value", pa.binary()), ("headers", HEADERS)])
"""A record from the bus, not decoded. Headers keep their order; a missing key or value is null."""

REJECTED = pa.schema([*RECORD, ("reason", pa.string()), ("detail", pa.string())])
"""A rejected record, with a reason code and a detail: one sentence for the person who fixes it."""


def filter_rows(rows: pa.Table, mask: pa.BooleanArray) -> pa.Table:
    """Return the rows where `mask` is true; the table itself, without a copy, if that is all of them."""
    return rows if pc.all(mask, min_count=0).as_py() else rows.filter(mask)
