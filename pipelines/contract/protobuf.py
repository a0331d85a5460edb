"""Bytes of `karmalake.v1.Event` to Arrow columns, in bulk; `ptars` is the one authority on what can be decoded.

The wire names fields by number: a newer writer's fields are passed over, those of an older one are absent. Where
`ptars` refuses a batch, or would panic or run out of stack, a scan of the wire (`wire.py`) finds the bad values; the
others are decoded in bulk.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ptars import HandlerPool, PtarsConfig

from pipelines.contract import event_pb2
from pipelines.contract.parsed import GOES_THROUGH, Parsed, Problem, parse_by_halves, parse_others, undecodable
from pipelines.contract.schema import EVENT, TIMESTAMP
from pipelines.contract.wire import MAX_GROUPS, find_faults

_HANDLER = HandlerPool([event_pb2.DESCRIPTOR], PtarsConfig(timestamp_unit="us")).get_for_message(
    event_pb2.Event.DESCRIPTOR
)
_WHAT = "a karmalake.v1.Event"
_ONES = 0xFF


def parse_protobuf(values: pa.Array) -> Parsed:
    """Decode an Arrow array of Protobuf bytes, nulls counting as blank."""
    return parse_by_halves(values, _parse, _WHAT)


def _parse(values: pa.Array) -> Parsed:
    """Decode in bulk, and where that fails, or would panic, without the values that the scan refuses."""
    faults = _problems(find_faults(values)) if _may_panic(values) else _too_deep(values)
    if not faults:
        try:
            return Parsed(_columns(values), {})
        except GOES_THROUGH:
            raise
        except BaseException:  # a Rust panic is no Exception
            faults = _problems(find_faults(values))
            if not faults:
                raise
    return parse_others(values, faults, _parse_rest)


def _parse_rest(values: pa.Array) -> Parsed:
    return Parsed(_columns(values), {})


def _may_panic(values: pa.Array) -> bool:
    """Return whether a length in the values may be so large that `ptars` wraps, panics and writes to standard error.

    Four bytes of ones stand in such a length, and in no text of UTF-8.
    """
    _, offsets, data = values.buffers()
    if data is None or not len(values):
        return False
    bounds = np.frombuffer(offsets, np.int32)
    content = np.frombuffer(data, np.uint8)[bounds[values.offset] : bounds[values.offset + len(values)]]
    if content.max(initial=0) < _ONES:
        return False
    return bool((content[:-3] & content[1:-2] & content[2:-1] & content[3:]).max(initial=0) == _ONES)


def _too_deep(values: pa.Array) -> dict[int, Problem]:
    """Return the values in which groups are nested so deep that `ptars` would run out of stack and end the process."""
    sizes = pc.binary_length(values)
    if (pc.max(sizes).as_py() or 0) <= MAX_GROUPS:
        return {}
    rows = pc.indices_nonzero(pc.greater(sizes, MAX_GROUPS))
    numbers = rows.to_pylist()
    return {numbers[row]: problem for row, problem in _problems(find_faults(values.take(rows))).items()}


def _problems(faults: dict[int, str]) -> dict[int, Problem]:
    told = {fault: undecodable(_WHAT, fault) for fault in set(faults.values())}
    return {row: told[fault] for row, fault in faults.items()}


def _columns(values: pa.Array) -> pa.Table:
    batch = _HANDLER.array_to_record_batch(values)
    event_time = batch.column("timestamp").cast(TIMESTAMP)
    names = ("event_id", "user_id", "action_type", "metadata")
    columns = {name: batch.column(name) for name in names} | {"event_time": event_time}
    return pa.table([columns[name].cast(EVENT.field(name).type) for name in EVENT.names], schema=EVENT)
