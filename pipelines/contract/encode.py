"""Arrow columns to bytes of `karmalake.v1.Event`, in bulk: what a producer puts into a record's value."""

import pyarrow as pa
from ptars import HandlerPool, PtarsConfig

from pipelines.contract import event_pb2
from pipelines.contract.schema import EVENT

_HANDLER = HandlerPool([event_pb2.DESCRIPTOR], PtarsConfig(timestamp_unit="us")).get_for_message(
    event_pb2.Event.DESCRIPTOR
)
_FIELDS = ["event_id", "user_id", "action_type", "timestamp", "metadata"]


def encode(events: pa.Table) -> pa.Array:
    """Return one binary value for each row of `events` (EVENT columns), in their order.

    A null or empty string is left out, as Protobuf has it; so are a null event_time and a null metadata map.
    Nothing is judged here: what is no valid event is encoded too, and becomes a dead letter at the other end.
    The same row gives the same bytes.
    """
    columns = [events[name].combine_chunks() for name in EVENT.names]
    return _HANDLER.record_batch_to_array(pa.record_batch(columns, names=_FIELDS))
