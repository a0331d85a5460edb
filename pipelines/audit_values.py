"""Whose event a value of the bus is, and which, for the audit: by other packages than ingest decodes with.

One value at a time: Google's Protobuf objects instead of `ptars`, Python's `json` instead of DuckDB, `fastavro` instead
of `pyruhvro`.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple, cast

from google.protobuf.message import DecodeError

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.event_pb2 import Event
from pipelines.contract.parsed import Problem
from pipelines.contract.schema_ids import PREFIX_BYTES, naming_of
from pipelines.contract.values import find_schemas
from pipelines.settings import ContractSettings

_DAMAGED = (ValueError, EOFError, IndexError, KeyError, OverflowError, MemoryError, TypeError, RecursionError)


class Named(NamedTuple):
    """What an event names; None where there is no text."""

    event_id: str | None
    user_id: str | None


_NOBODY = Named(None, None)


def names_in(value: bytes, headers: Sequence[tuple[str, bytes | None]], contract: ContractSettings) -> Named:
    """Return the ids that a value of any format holds. Raises what `Schemas.get_all` raises."""
    naming = naming_of(value, headers)
    found = find_schemas([naming], [1], contract)[0] if naming else None
    if isinstance(found, Problem):
        return _NOBODY
    form, schema = (found.format, found.text) if found else (contract.format, OWN_SCHEMA)
    fields = value
    if naming and naming.header is None:
        fields = value[PREFIX_BYTES:]
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
    except _DAMAGED:
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
