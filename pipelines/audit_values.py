"""The event_id in a value of the bus, for the audit: one value at a time, by other packages than ingest decodes with.

Google's Protobuf objects instead of `ptars`, Python's `json` instead of DuckDB, `fastavro` instead of `pyruhvro`.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

from google.protobuf.message import DecodeError

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.event_pb2 import Event
from pipelines.contract.schemas import schemas_of
from pipelines.settings import ContractSettings

_PREFIX_BYTES = 5
_DAMAGED = (ValueError, EOFError, IndexError, KeyError, OverflowError, MemoryError, TypeError, RecursionError)


def event_id_of(value: bytes, contract: ContractSettings) -> str | None:
    """Return the event_id that a value of any format holds; None if it holds none. Raises what `Schemas.get` raises."""
    form, schema, fields = contract.format, OWN_SCHEMA, value
    if value[:1] == b"\0" and len(value) >= _PREFIX_BYTES:
        found = schemas_of(contract).get(int.from_bytes(value[1:_PREFIX_BYTES], "big"))
        if found is None:
            return None
        form, schema, fields = found.format, found.text, value[_PREFIX_BYTES:]
        if form == "protobuf":
            fields = fields[2:] if fields[:1] == b"\x02" else fields[1:]
    match form:
        case "protobuf":
            return _of_protobuf(fields)
        case "json":
            return _of_object(lambda: json.loads(fields))
        case "avro":
            return _of_object(lambda: _avro_reader(schema)(fields))


def _of_protobuf(fields: bytes) -> str | None:
    try:
        return Event.FromString(fields).event_id or None
    except DecodeError:
        return None


def _of_object(read: Callable[[], Any]) -> str | None:
    try:
        found = read()
    except _DAMAGED:
        return None
    event_id = cast("dict[str, Any]", found).get("event_id") if isinstance(found, dict) else None
    return event_id if isinstance(event_id, str) else None


@lru_cache(maxsize=256)
def _avro_reader(schema: str) -> Callable[[bytes], Any]:
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra

    parsed = parse_schema(json.loads(schema))
    return lambda value: schemaless_reader(BytesIO(value), parsed, None)
