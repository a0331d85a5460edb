"""Bytes of `karmalake.v1.Event` to Arrow columns, in bulk.

`ptars` is the one authority on what can be decoded. It refuses a whole array for one bad value, so a refused
chunk is decoded again value by value: a bad record costs its neighbours a little time and nothing else.
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
    """`events` has a row for each value; `errors` says by row why a value could not be decoded (its row is blank).

    Absent strings are empty, as Protobuf has it; an absent timestamp is null.
    """

    events: pa.Table
    errors: dict[int, str]


def parse(values: pa.Array) -> Parsed:
    """Decode an Arrow array of Protobuf bytes, nulls counting as blank."""
    try:
        return Parsed(_columns(values), {})
    except ValueError:
        return _parse_chunks(values)


def _columns(values: pa.Array) -> pa.Table:
    batch = _HANDLER.array_to_record_batch(values)
    event_time = batch.column("timestamp").cast(TIMESTAMP)
    names = ("event_id", "user_id", "action_type", "metadata")
    columns = {name: batch.column(name) for name in names} | {"event_time": event_time}
    return pa.table([columns[name].cast(EVENT.field(name).type) for name in EVENT.names], schema=EVENT)


def _parse_chunks(values: pa.Array) -> Parsed:
    errors: dict[int, str] = {}
    chunks: list[pa.Table] = []
    for start in range(0, len(values), _CHUNK):
        chunk = values.slice(start, _CHUNK)
        try:
            chunks.append(_columns(chunk))
        except ValueError:
            found = _errors(chunk)
            chunks.append(_columns(_blank_out(chunk, found)))
            errors |= {start + row: sentence for row, sentence in found.items()}
    return Parsed(pa.concat_tables(chunks), errors)


def _errors(chunk: pa.Array) -> dict[int, str]:
    found: dict[int, str] = {}
    for row, value in enumerate(chunk.to_pylist()):
        try:
            _HANDLER.list_to_record_batch([value or _BLANK])
        except ValueError as error:
            found[row] = str(error)
    return found


def _blank_out(chunk: pa.Array, errors: dict[int, str]) -> pa.Array:
    bad = np.zeros(len(chunk), dtype=bool)
    bad[list(errors)] = True
    return pc.if_else(pa.array(bad), pa.scalar(_BLANK, chunk.type), chunk)
