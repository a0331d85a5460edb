"""Value decoder of the audit: decodes one value at a time, independently of ingest.

Plain Python for Protobuf (`audit_wire.py`) and Avro (`audit_avro.py`) instead of `ptars` and `pyruhvro`, and Python's
`json` instead of compiled loops. These accept different input, so `contract/wire.py`, `contract/json_grammar.py` and
`contract/avro.py` define what an event is. This module implements the same rules a second time;
`tests/operate/test_audit_values.py` compares the two, since a stricter reader than ingest would report false losses.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, cast

from pipelines.boundary.nesting import is_nested_over
from pipelines.contract.avro import BULK_BYTES, OWN_SCHEMA, event_fields
from pipelines.contract.avro_sandbox import decode_sandboxed
from pipelines.contract.avro_schema import bulk_cells_per_row
from pipelines.contract.json_grammar import MAX_JSON_DEPTH
from pipelines.contract.parsing import Problem
from pipelines.contract.schema_ids import PREFIX_BYTES, SchemaReference, schema_reference
from pipelines.contract.values import find_schemas
from pipelines.operate.audit_avro import Reader
from pipelines.operate.audit_wire import read_wire
from pipelines.settings import ContractSettings, Format

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = 2**63
_FIRST_MESSAGE = {b"", b"\x00", b"\x02\x00"}
"""Encodings of the index of a Protobuf schema's first message in a header; in a value only the last two occur."""
_TEXTS = ("event_id", "user_id", "action_type")


class ReadEvent(NamedTuple):
    """A decoded event; absent strings are empty, an absent time is None."""

    event_id: str
    user_id: str
    action_type: str
    event_time_us: int | None
    """Microseconds since 1970, unbounded."""
    metadata: dict[str, str]


def read_event(
    value: bytes, headers: Sequence[tuple[str, bytes | None]], contract: ContractSettings
) -> ReadEvent | Problem | None:
    """Return the event in a value of any format, None if it is not an event, or why its schema cannot be looked up.

    Raises what `SchemaStore.get_all` raises, and TransientError if no child process for Avro can be started.
    """
    reference = schema_reference(value, headers)
    found = find_schemas([reference], [1], contract)[0] if reference else None
    if isinstance(found, Problem):
        return found
    form, schema = (found.format, found.text) if found else (contract.format, OWN_SCHEMA)
    try:
        content = value if reference is None else _content(value, reference, form)
        return _READERS[form](content, schema)
    except (ValueError, OverflowError):  # UnicodeDecodeError and JSONDecodeError; a time outside the calendar
        return None


def _content(value: bytes, reference: SchemaReference, form: Format) -> bytes:
    """Return a value without its schema id and message index. Raises ValueError unless that is the first message."""
    if reference.header is not None:
        if reference.indexes not in _FIRST_MESSAGE:
            raise ValueError("not the first message of its schema")
        return value
    content = value[PREFIX_BYTES:]
    if form != "protobuf":
        return content
    short, full = content[:1] == b"\x00", content[:2] == b"\x02\x00"
    if not (short or full):
        raise ValueError("not the first message of its schema")
    return content[1:] if short else content[2:]


def _event(texts: Sequence[str], event_time_us: int | None, metadata: dict[str, str]) -> ReadEvent:
    event_id, user_id, action_type = texts
    return ReadEvent(event_id, user_id, action_type, event_time_us, metadata)


def _read_protobuf(content: bytes, _: str) -> ReadEvent:
    event = read_wire(content)
    return _event([event.texts.get(number, "") for number in (1, 2, 3)], event.event_time_us, event.metadata)


def _read_json(content: bytes, _: str) -> ReadEvent:
    text = content.decode()
    if is_nested_over(text, MAX_JSON_DEPTH):
        raise ValueError("nested too deep")
    pairs = json.loads(
        text,
        object_pairs_hook=_Object,
        parse_int=_ignore_number,
        parse_float=_ignore_number,
        parse_constant=_reject_constant,
    )
    _reject_surrogates(pairs)
    fields = _unique_fields(pairs)
    texts = [_text(fields.get(name)) for name in _TEXTS]
    time = fields.get("timestamp")
    entries = {} if fields.get("metadata") is None else _unique_fields(fields["metadata"])
    if not all(isinstance(entry, str) for entry in entries.values()):
        raise ValueError("metadata is not an object of strings")
    return _event(texts, None if time is None else _parse_time(_text(time)), entries)


class _Object(tuple[tuple[str, Any], ...]):
    """The fields of a JSON object in order, duplicates included."""

    __slots__ = ()


def _ignore_number(_: str) -> int:
    return 0  # no field of an event is a number, so its size does not matter


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _reject_surrogates(found: Any) -> None:
    """Raise ValueError (UnicodeEncodeError) if any string contains an unpaired surrogate."""
    stack = [found]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            item.encode()
        elif isinstance(item, list | tuple):
            stack.extend(cast("list[Any] | tuple[Any, ...]", item))


def _unique_fields(pairs: Any) -> dict[str, Any]:
    """Return an object's fields by name. Raises ValueError if it is not an object or has a duplicate field."""
    if not isinstance(pairs, _Object):
        raise ValueError("not an object")  # noqa: TRY004 - the callers treat ValueError as "not an event"
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("duplicate field")
    return fields


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("not a string")  # noqa: TRY004 - the callers treat ValueError as "not an event"
    return value


def _parse_time(text: str) -> int:
    """Return an ISO 8601 time in microseconds since 1970; UTC without a zone; within the years 1 to 9999."""
    time = datetime.fromisoformat(text.strip())
    microseconds = ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    _ = _EPOCH + timedelta(microseconds=microseconds)  # raises if the zone's offset moves it out of that range
    return microseconds


def _read_avro(content: bytes, schema: str) -> ReadEvent:
    """Read a value: a listed schema in this process, any other in a child process, which a value may crash or stall."""
    plain, names, time_kinds = _event_schema(schema)
    if bulk_cells_per_row(plain) and len(content) <= BULK_BYTES:
        row = Reader(content).read(plain)
        found = {name: _decode_text(row[name]) for name in names}
    else:
        found = _decode_in_child(plain, names, content)
    time = found.get("timestamp")
    if time is not None:
        time = time * 1_000 if "timestamp-millis" in time_kinds else time
        time = time // 1_000 if "timestamp-nanos" in time_kinds else time
        if not -_INT64 <= time < _INT64:
            raise ValueError("its timestamp is out of range")
    return _event([found.get(name) or "" for name in _TEXTS], time, found.get("metadata") or {})


def _decode_text(value: Any) -> Any:
    """Return a field with its byte strings decoded."""
    if isinstance(value, dict):
        return {_decode_text(key): _decode_text(entry) for key, entry in cast("dict[Any, Any]", value).items()}
    return value.decode() if isinstance(value, bytes) else value


def _decode_in_child(plain: dict[str, Any], names: list[str], content: bytes) -> dict[str, Any]:
    (row,) = decode_sandboxed(json.dumps(plain), names, [content])
    if isinstance(row, str):
        raise ValueError(row)  # noqa: TRY004 - the callers treat ValueError as "not an event"
    return dict(zip(names, row, strict=True))


_event_schema = lru_cache(maxsize=256)(event_fields)


_READERS: dict[str, Callable[[bytes, str], ReadEvent]] = {
    "protobuf": _read_protobuf,
    "json": _read_json,
    "avro": _read_avro,
}
