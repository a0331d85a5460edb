"""Bytes of `karmalake.v1.Event` to Arrow columns, in bulk.

`ptars` is the one authority on what can be decoded. It refuses a whole array for one bad value, so what it refuses
is halved until the bad values are found: they cost their neighbours a little time and nothing else.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ptars import HandlerPool, PtarsConfig

from pipelines.contract import event_pb2
from pipelines.contract.schema import EVENT, TIMESTAMP

_CHUNK = 1024
_HANDLER = HandlerPool([event_pb2.DESCRIPTOR], PtarsConfig(timestamp_unit="us")).get_for_message(
    event_pb2.Event.DESCRIPTOR
)
_BLANK = event_pb2.Event().SerializeToString()


@dataclass(frozen=True, slots=True)
class Parsed:
    """`events` has a row for each value; `errors` says in a sentence by row why one could not be decoded (it is blank).

    Absent strings are empty, as Protobuf has it; an absent timestamp is null.
    """

    events: pa.Table
    errors: dict[int, str]


def parse(values: pa.Array) -> Parsed:
    """Decode an Arrow array of Protobuf bytes, nulls counting as blank."""
    try:
        return Parsed(_columns(values), {})
    except ValueError:
        errors: dict[int, str] = {}
        for start in range(0, len(values), _CHUNK):
            errors |= _errors(values.slice(start, _CHUNK), start)
        return Parsed(_columns(_blank_out(values, errors)), errors)


def _columns(values: pa.Array) -> pa.Table:
    batch = _HANDLER.array_to_record_batch(values)
    event_time = batch.column("timestamp").cast(TIMESTAMP)
    names = ("event_id", "user_id", "action_type", "metadata")
    columns = {name: batch.column(name) for name in names} | {"event_time": event_time}
    return pa.table([columns[name].cast(EVENT.field(name).type) for name in EVENT.names], schema=EVENT)


def _errors(values: pa.Array, first_row: int) -> dict[int, str]:
    """Find the values that cannot be decoded, by halving what is refused."""
    try:
        _HANDLER.array_to_record_batch(values)
    except ValueError as error:
        if len(values) == 1:
            return {first_row: f"The value is not a karmalake.v1.Event: {error}."}
        half = len(values) // 2
        return _errors(values.slice(0, half), first_row) | _errors(values.slice(half), first_row + half)
    return {}


def _blank_out(values: pa.Array, errors: dict[int, str]) -> pa.Array:
    bad = np.zeros(len(values), dtype=bool)
    bad[list(errors)] = True
    return pc.if_else(pa.array(bad), pa.scalar(_BLANK, values.type), values)
