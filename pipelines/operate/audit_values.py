"""What event a value of the bus is, for the audit: by other code than ingest decodes with, one value at a time.

Plain Python on the wire of Protobuf (`audit_wire.py`) and on Avro (`audit_avro.py`) instead of `ptars` and `pyruhvro`,
Python's `json` instead of DuckDB. These packages differ in what they take, so what an event is, is ruled elsewhere, in
`contract/wire.py`, `contract/json_grammar.py` and `contract/avro.py`. The rulings are kept here by other means, and
`tests/operate/test_audit_values.py` holds the two together: a reader stricter than ingest reports losses that are none.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from pipelines.contract.apart import decode_apart
from pipelines.contract.avro import BULK_BYTES, OWN_SCHEMA, event_fields
from pipelines.contract.json_grammar import MAX_JSON_DEPTH
from pipelines.contract.parsed import Problem
from pipelines.contract.schema_ids import PREFIX_BYTES, Naming, naming_of
from pipelines.contract.values import find_schemas
from pipelines.contract.writers import cells_in_bulk
from pipelines.operate.audit_avro import Reader
from pipelines.operate.audit_wire import read_wire
from pipelines.settings import ContractSettings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = 2**63
_FIRST_MESSAGE = {b"", b"\x00", b"\x02\x00"}
"""How a header names the first message of a Protobuf schema; a value does by the latter two."""
_TEXTS = ("event_id", "user_id", "action_type")
_JSON_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class ReadEvent(NamedTuple):
    """An event as it was read; absent texts are empty, an absent time is None."""

    event_id: str
    user_id: str
    action_type: str
    event_time_us: int | None
    """Microseconds since 1970, of any size."""
    metadata: dict[str, str]


def read_event(
    value: bytes, headers: Sequence[tuple[str, bytes | None]], contract: ContractSettings
) -> ReadEvent | Problem | None:
    """Return the event that a value of any format is, None where it is none, or why its schema cannot be looked up.

    Raises what `Schemas.get_all` raises, and TransientError when no process for Avro can be started.
    """
    naming = naming_of(value, headers)
    found = find_schemas([naming], [1], contract)[0] if naming else None
    if isinstance(found, Problem):
        return found
    form, schema = (found.format, found.text) if found else (contract.format, OWN_SCHEMA)
    try:
        content = value if naming is None else _content(value, naming, form)
        return _READERS[form](content, schema)
    except ValueError:  # UnicodeDecodeError and JSONDecodeError are some
        return None


def _content(value: bytes, naming: Naming, form: Literal["protobuf", "avro", "json"]) -> bytes:
    """Return a value without the id of its schema, and the message of it, which has to be the first one."""
    if naming.header is not None:
        if naming.indexes not in _FIRST_MESSAGE:
            raise ValueError("another message")
        return value
    content = value[PREFIX_BYTES:]
    if form != "protobuf":
        return content
    short, full = content[:1] == b"\x00", content[:2] == b"\x02\x00"
    if not (short or full):
        raise ValueError("another message")
    return content[1:] if short else content[2:]


def _event(texts: Sequence[str], event_time_us: int | None, metadata: dict[str, str]) -> ReadEvent:
    event_id, user_id, action_type = texts
    return ReadEvent(event_id, user_id, action_type, event_time_us, metadata)


def _of_protobuf(content: bytes, _: str) -> ReadEvent:
    event = read_wire(content)
    return _event([event.texts.get(number, "") for number in (1, 2, 3)], event.event_time_us, event.metadata)


def _of_json(content: bytes, _: str) -> ReadEvent:
    if _depth(content) > MAX_JSON_DEPTH:
        raise ValueError("nested too deep")
    pairs = json.loads(
        content.decode(), object_pairs_hook=_Object, parse_int=_number, parse_float=_number, parse_constant=_refuse
    )
    _refuse_surrogates(pairs)
    fields = _once_each(pairs)
    texts = [_text(fields.get(name)) for name in _TEXTS]
    time = fields.get("timestamp")
    entries = {} if fields.get("metadata") is None else _once_each(fields["metadata"])
    if not all(isinstance(entry, str) for entry in entries.values()):
        raise ValueError("metadata is no object of strings")
    return _event(texts, None if time is None else _iso_time(_text(time)), entries)


class _Object(tuple[tuple[str, Any], ...]):
    """The fields of a JSON object, in their order, repeated ones too."""

    __slots__ = ()


def _depth(content: bytes) -> int:
    """Return how deep a value is nested, of what is no JSON too, without recursion."""
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", _JSON_TEXT.sub(b"", content)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _number(_: str) -> int:
    return 0  # of any size, for no field of an event is one


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _refuse_surrogates(found: Any) -> None:
    """Raise ValueError (UnicodeEncodeError) where a text within holds half of a surrogate pair."""
    waiting = [found]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            item.encode()
        elif isinstance(item, list | tuple):
            waiting.extend(cast("list[Any] | tuple[Any, ...]", item))


def _once_each(pairs: Any) -> dict[str, Any]:
    """Return an object's fields by name."""
    if not isinstance(pairs, _Object):
        raise ValueError("no object")  # noqa: TRY004 - what is no event is a ValueError
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field twice")
    return fields


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("no string")  # noqa: TRY004 - what is no event is a ValueError
    return value


def _iso_time(text: str) -> int:
    """Return a time in ISO 8601, UTC where it has no zone, within the years 1 to 9999."""
    time = datetime.fromisoformat(text.strip())
    microseconds = ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    _ = _EPOCH + timedelta(microseconds=microseconds)  # its offset may take it out of the calendar
    return microseconds


def _of_avro(content: bytes, schema: str) -> ReadEvent:
    """Read a value as ingest does: by a schema of the list here, else in a process, which it may end or stall."""
    plain, names, time_kinds = _plain(schema)
    if cells_in_bulk(plain) and len(content) <= BULK_BYTES:
        row = Reader(content).read(plain)
        found = {name: _decoded(row[name]) for name in names}
    else:
        found = _apart(plain, names, content)
    time = found.get("timestamp")
    if time is not None:
        time = time * 1_000 if "timestamp-millis" in time_kinds else time
        time = time // 1_000 if "timestamp-nanos" in time_kinds else time
        if not -_INT64 <= time < _INT64:
            raise ValueError("its timestamp is out of range")
    return _event([found.get(name) or "" for name in _TEXTS], time, found.get("metadata") or {})


def _decoded(value: Any) -> Any:
    """Return a field with its texts decoded."""
    if isinstance(value, dict):
        return {_decoded(key): _decoded(entry) for key, entry in cast("dict[Any, Any]", value).items()}
    return value.decode() if isinstance(value, bytes) else value


def _apart(plain: dict[str, Any], names: list[str], content: bytes) -> dict[str, Any]:
    (row,) = decode_apart(json.dumps(plain), names, [content])
    if isinstance(row, str):
        raise ValueError(row)  # noqa: TRY004 - what is no event is a ValueError
    return dict(zip(names, row, strict=True))


_plain = lru_cache(maxsize=256)(event_fields)


_READERS: dict[str, Callable[[bytes, str], ReadEvent]] = {
    "protobuf": _of_protobuf,
    "json": _of_json,
    "avro": _of_avro,
}
