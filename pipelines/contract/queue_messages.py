"""Messages of queues as records: they have no keys, and a body of SQS is text that may wrap the event.

With `contract.format` json such a body is the event, or an envelope of EventBridge with the event as its `detail`;
with another format it is the event in base64. An event is returned as it is, so that a dead letter can be read again
in whichever form it is stored.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import base64
import binascii

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.json_scan import NAME_START, VALUE_START, Members, locate_members
from pipelines.settings import ContractSettings

_RABBITMQ, _SQS = "rabbitmq:", "sqs:"
"""How the names of queues begin; the name of a topic of Kafka has no colon."""


def are_of_queues(topics: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which records are messages of a queue, by their topics."""
    return pc.or_(pc.starts_with(topics, _RABBITMQ), pc.starts_with(topics, _SQS))


def unwrap_bodies(records: pa.Table, contract: ContractSettings) -> pa.Table:
    """Return records (at least `topic` and `value`) with the values of SQS unwrapped.

    A value that wraps nothing is left as it is, for the contract to judge.
    """
    of_sqs = pc.starts_with(records["topic"], _SQS)
    if not pc.any(of_sqs).as_py():
        return records
    unwrap = unwrap_detail if contract.format == "json" else decode_base64
    pairs = zip(records["value"].to_pylist(), of_sqs.to_pylist(), strict=True)
    values = [unwrap(value) if value and is_body else value for value, is_body in pairs]
    at = records.schema.get_field_index("value")
    return records.set_column(at, records.schema.field(at), pa.array(values, records.schema.field(at).type))


def decode_base64(body: bytes) -> bytes:
    """Decode a body in base64; return any other one unchanged, such as an event: its tags or times are no letters."""
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        return body


def unwrap_detail(body: bytes) -> bytes:
    """Return the `detail` of an envelope of EventBridge, byte for byte; return any other body unchanged.

    An event may have a `detail` of its own; its event_id tells it from an envelope.
    """
    found = locate_members(np.frombuffer(body, np.uint8), np.array([0, len(body)], np.int32))
    names, values = ([body[start:end] for start, end in _spans(found, first)] for first in (NAME_START, VALUE_START))
    is_envelope = names.count(b"detail") == 1 and b"detail-type" in names and b"event_id" not in names
    return values[names.index(b"detail")] if is_envelope and not found.faults[0] else body


def _spans(found: Members, first: int) -> list[list[int]]:
    return found.spans[first : first + 2, : found.bounds[1]].T.tolist()
