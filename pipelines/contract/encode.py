"""Bulk encoding of Arrow columns to `karmalake.v1.Event`, the values of the records that a producer sends."""

import pyarrow as pa
from ptars import HandlerPool, PtarsConfig

from pipelines.contract import event_pb2
from pipelines.contract.schema import EVENT

_HANDLER = HandlerPool([event_pb2.DESCRIPTOR], PtarsConfig(timestamp_unit="us")).get_for_message(
    event_pb2.Event.DESCRIPTOR
)
_FIELDS = ["event_id", "user_id", "action_type", "timestamp", "metadata"]


def encode(events: pa.Table) -> pa.Array:
    """Encode each row of `events` (EVENT columns); return a binary array of the same length and order.

    Null and empty strings, a null event_time and a null metadata map are omitted, as in Protobuf. Rows are not
    validated: an invalid event is encoded too, and becomes a dead letter on ingest. The encoding is deterministic.
    """
    columns = [events[name].combine_chunks() for name in EVENT.names]
    return _HANDLER.record_batch_to_array(pa.record_batch(columns, names=_FIELDS))
