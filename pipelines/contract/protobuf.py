"""Bulk decoding of `karmalake.v1.Event` to Arrow columns; `ptars` alone decides what can be decoded.

The wire format identifies fields by number: unknown fields of a newer writer are ignored, fields that an older writer
lacks are absent. If `ptars` rejects a batch, or would panic or overflow the stack, a scan of the wire format
(`wire.py`) finds the bad values; all others are decoded in bulk. Another scan finds timestamps in several parts, as in
joined messages: the format says that parts are merged, and `ptars` takes the last one, so they are merged before.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError
from ptars import HandlerPool, PtarsConfig

from pipelines.contract import event_pb2
from pipelines.contract.parsing import (
    Parsed,
    Problem,
    is_propagated,
    parse_by_bisection,
    parse_remaining,
    undecodable,
)
from pipelines.contract.schema import EVENT, TIMESTAMP
from pipelines.contract.wire import MAX_GROUPS, find_faults, repeats_timestamp

_HANDLER = HandlerPool([event_pb2.DESCRIPTOR], PtarsConfig(timestamp_unit="us")).get_for_message(
    event_pb2.Event.DESCRIPTOR
)
_EXPECTED = "a karmalake.v1.Event"
_ALL_ONES = 0xFF


def parse_protobuf(values: pa.Array) -> Parsed:
    """Decode a binary array of Protobuf values; nulls count as empty."""
    return parse_by_bisection(_with_one_timestamp(values), _parse, _EXPECTED)


def _with_one_timestamp(values: pa.Array) -> pa.Array:
    repeated = repeats_timestamp(values)
    if not repeated.any():
        return values
    merged = [_merged(values[row].as_py()) for row in np.flatnonzero(repeated).tolist()]
    return pc.replace_with_mask(values, pa.array(repeated), pa.array(merged, values.type))


def _merged(value: bytes) -> bytes:
    try:
        return event_pb2.Event.FromString(value).SerializeToString()
    except DecodeError:
        return value


def _parse(values: pa.Array) -> Parsed:
    """Decode in bulk; leave out the values that the scan rejects if decoding fails or might panic."""
    faults = _problems(find_faults(values)) if _may_panic(values) else _too_deep(values)
    if not faults:
        try:
            return Parsed(_columns(values), {})
        except BaseException as error:  # a Rust panic is not an Exception
            if is_propagated(error):
                raise
            faults = _problems(find_faults(values))
            if not faults:
                raise
    return parse_remaining(values, faults, _parse_valid)


def _parse_valid(values: pa.Array) -> Parsed:
    return Parsed(_columns(values), {})


def _may_panic(values: pa.Array) -> bool:
    """Return whether the values may contain a length that overflows in `ptars`, which panics and writes to stderr.

    Such a length contains four consecutive bytes of 0xFF, which UTF-8 text never does.
    """
    _, offsets, data = values.buffers()
    if data is None or not len(values):
        return False
    bounds = np.frombuffer(offsets, np.int32)
    content = np.frombuffer(data, np.uint8)[bounds[values.offset] : bounds[values.offset + len(values)]]
    if content.max(initial=0) < _ALL_ONES:
        return False
    return bool((content[:-3] & content[1:-2] & content[2:-1] & content[3:]).max(initial=0) == _ALL_ONES)


def _too_deep(values: pa.Array) -> dict[int, Problem]:
    """Return by row the problem of values whose groups are nested so deep that `ptars` would overflow the stack."""
    sizes = pc.binary_length(values)
    if (pc.max(sizes).as_py() or 0) <= MAX_GROUPS:
        return {}
    rows = pc.indices_nonzero(pc.greater(sizes, MAX_GROUPS))
    numbers = rows.to_pylist()
    return {numbers[row]: problem for row, problem in _problems(find_faults(values.take(rows))).items()}


def _problems(faults: dict[int, str]) -> dict[int, Problem]:
    problems = {fault: undecodable(_EXPECTED, fault) for fault in set(faults.values())}
    return {row: problems[fault] for row, fault in faults.items()}


def _columns(values: pa.Array) -> pa.Table:
    batch = _HANDLER.array_to_record_batch(values)
    event_time = batch.column("timestamp").cast(TIMESTAMP)
    names = ("event_id", "user_id", "action_type", "metadata")
    columns = {name: batch.column(name) for name in names} | {"event_time": event_time}
    return pa.table([columns[name].cast(EVENT.field(name).type) for name in EVENT.names], schema=EVENT)
