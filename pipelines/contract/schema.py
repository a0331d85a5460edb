"""The columns of an event and of the record that carried it, as Arrow types.

Every stage speaks these columns; nobody passes events as objects.
"""

import pyarrow as pa

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
"""What the producer said. `event_time` is the contract's `timestamp`, cut to whole microseconds."""

PLACE = pa.schema(
    [
        ("topic_id", pa.string()),
        ("topic", pa.string()),
        ("topic_partition", pa.int32()),
        ("offset", pa.int64()),
        ("bus_time", TIMESTAMP),
    ]
)
"""Where on the bus a record stood, and the broker's time of it. (topic_id, topic_partition, offset) is unique."""

RECORD = pa.schema([*PLACE, ("key", pa.binary()), ("value", pa.binary()), ("headers", HEADERS)])
"""A record as it came from the bus, undecoded. Headers keep their order; a missing key or value is null."""

REJECTED = pa.schema([*RECORD, ("reason", pa.string()), ("detail", pa.string())])
"""A record that is no event: a reason code and a sentence for the person who has to mend it."""
