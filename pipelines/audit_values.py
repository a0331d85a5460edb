"""Whose event a value of the bus is, and which, for the audit: by other packages than ingest decodes with.

One value at a time: Google's Protobuf objects instead of `ptars`, Python's `json` instead of DuckDB, `fastavro` instead
of `pyruhvro`.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from google.protobuf.message import DecodeError

from pipelines.contract.apart import decode_apart
from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.event_pb2 import Event
from pipelines.contract.parsed import Problem
from pipelines.contract.schema_ids import PREFIX_BYTES, naming_of
from pipelines.contract.values import find_schemas
from pipelines.contract.writers import bare, read_schema
from pipelines.errors import TransientError
from pipelines.settings import ContractSettings


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
            return _of_object(lambda: _of_avro(schema, fields))


def _of_protobuf(fields: bytes) -> Named:
    try:
        event = Event.FromString(fields)
    except DecodeError:
        return _NOBODY
    return Named(event.event_id or None, event.user_id or None)


def _of_object(read: Callable[[], Any]) -> Named:
    try:
        found = read()
    except TransientError:
        raise
    except Exception:  # noqa: BLE001 - packages raise whatever they meet in a value or a schema that is none
        return _NOBODY
    if not isinstance(found, dict):
        return _NOBODY
    ids = (cast("dict[str, Any]", found).get(name) for name in Named._fields)
    return Named(*(name if isinstance(name, str) else None for name in ids))


def _of_avro(schema: str, fields: bytes) -> dict[str, Any] | None:
    """Read a value in a process of its own, which it may end or stall."""
    plain, names = _plain(schema)
    (row,) = decode_apart(plain, names, [fields])
    return None if isinstance(row, str) else dict(zip(names, row, strict=True))


@lru_cache(maxsize=256)
def _plain(schema: str) -> tuple[str, list[str]]:
    """Return a schema without logical types, which a value need not keep to, and the ids among its fields."""
    definition, fields = read_schema(schema)
    return json.dumps(bare(definition)), [name for name in Named._fields if name in fields]
