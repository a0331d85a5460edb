"""Whose event a value of the bus is, and which, for the audit: by other packages than ingest decodes with.

One value at a time: Google's Protobuf objects instead of `ptars`, Python's `json` instead of DuckDB, `fastavro` instead
of `pyruhvro`.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple, cast

from google.protobuf.message import DecodeError

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.event_pb2 import Event
from pipelines.contract.schemas import schemas_of
from pipelines.settings import ContractSettings

_PREFIX_BYTES = 5


class Named(NamedTuple):
    """What an event names; None where there is no text."""

    event_id: str | None
    user_id: str | None


_NOBODY = Named(None, None)


def names_in(value: bytes, contract: ContractSettings) -> Named:
    """Return the ids that a value of any format holds. Raises what `Schemas.get` raises."""
    form, schema, fields = contract.format, OWN_SCHEMA, value
    if value[:1] == b"\0" and len(value) >= _PREFIX_BYTES:
        found = schemas_of(contract).get(int.from_bytes(value[1:_PREFIX_BYTES], "big"))
        if found is None:
            return _NOBODY
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


def _of_protobuf(fields: bytes) -> Named:
    try:
        event = Event.FromString(fields)
    except DecodeError:
        return _NOBODY
    return Named(event.event_id or None, event.user_id or None)


def _of_object(read: Callable[[], Any]) -> Named:
    try:
        found = read()
    except Exception:  # noqa: BLE001 - packages raise whatever they meet in a value or a schema that is none
        return _NOBODY
    if not isinstance(found, dict):
        return _NOBODY
    ids = (cast("dict[str, Any]", found).get(name) for name in Named._fields)
    return Named(*(name if isinstance(name, str) else None for name in ids))


@lru_cache(maxsize=256)
def _avro_reader(schema: str) -> Callable[[bytes], Any]:
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra

    parsed = parse_schema(json.loads(schema))
    return lambda value: schemaless_reader(BytesIO(value), parsed, None)
