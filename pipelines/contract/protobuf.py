"""Bytes of `karmalake.v1.Event` to Arrow columns, in bulk; `ptars` is the one authority on what can be decoded.

The wire names fields by number: a newer writer's fields are passed over, those of an older one are absent.
"""

import pyarrow as pa
from ptars import HandlerPool, PtarsConfig

from pipelines.contract import event_pb2
from pipelines.contract.parsed import Parsed, parse_in_bulk
from pipelines.contract.schema import EVENT, TIMESTAMP

_HANDLER = HandlerPool([event_pb2.DESCRIPTOR], PtarsConfig(timestamp_unit="us")).get_for_message(
    event_pb2.Event.DESCRIPTOR
)


def parse_protobuf(values: pa.Array) -> Parsed:
    """Decode an Arrow array of Protobuf bytes, nulls counting as blank."""
    return parse_in_bulk(values, _columns, "a karmalake.v1.Event")


def _columns(values: pa.Array) -> pa.Table:
    batch = _HANDLER.array_to_record_batch(values)
    event_time = batch.column("timestamp").cast(TIMESTAMP)
    names = ("event_id", "user_id", "action_type", "metadata")
    columns = {name: batch.column(name) for name in names} | {"event_time": event_time}
    return pa.table([columns[name].cast(EVENT.field(name).type) for name in EVENT.names], schema=EVENT)
