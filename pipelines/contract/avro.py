"""Avro values to Arrow columns, each array by the schema of the writer, whose fields are found by name.

Fields that the contract does not know are passed over, those that are absent are empty: older and newer writers are
understood alike. What `pyruhvro` can read is read in bulk; a schema with bytes or fixed fields is read value by value.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.parsed import Parsed, Problem, parse_in_bulk
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, METADATA, TIMESTAMP
from pipelines.errors import ConfigurationError

OWN_SCHEMA = files("pipelines.contract").joinpath("event.avsc").read_text(encoding="utf-8")
_NOT_IN_BULK = {"bytes", "fixed"}
_TEXT = {"string", "enum", "null"}
_FIELDS = {
    "event_id": _TEXT,
    "user_id": _TEXT,
    "action_type": _TEXT,
    "timestamp": {"timestamp-millis", "timestamp-micros", "timestamp-nanos", "null"},
    "metadata": {"map of string", "null"},
}
_DAMAGED = (EOFError, IndexError, KeyError, OverflowError, MemoryError, TypeError)
_Read = Callable[[pa.Array], pa.Table]


def parse_avro(values: pa.Array, schema: str = OWN_SCHEMA) -> Parsed:
    """Decode an Arrow array of Avro values, without header or schema, that were written by `schema` (JSON)."""
    try:
        read = _reader(schema)
    except ValueError as error:
        problem = Problem(Reason.UNDECODABLE, f"The writer's Avro schema is no event: {error}.")
        return Parsed(
            EVENT.empty_table().take(pa.nulls(len(values), pa.int64())), dict.fromkeys(range(len(values)), problem)
        )
    return parse_in_bulk(pc.fill_null(values, b""), read, "an event by its writer's Avro schema")


@lru_cache(maxsize=256)
def _reader(schema: str) -> _Read:
    """Return what turns values written by `schema` into EVENT columns; raises ValueError if it cannot hold an event."""
    _, _, parse_schema = _packages()
    try:
        definition: Any = json.loads(schema)
        parse_schema(json.loads(schema))
    except Exception as error:  # noqa: BLE001 - the package raises whatever it meets in a schema that is none
        raise ValueError(f"it cannot be read ({error})") from None
    if not isinstance(definition, dict) or definition.get("type") != "record" or "fields" not in definition:
        raise ValueError("it is no record with fields")
    fields: dict[str, Any] = {field["name"]: field["type"] for field in definition["fields"]}
    for name, kinds in _FIELDS.items():
        if not all(_kind(of) in kinds for of in _choices(fields.get(name, "null"))):
            raise ValueError(f"its {name} is {json.dumps(fields[name])}, not {' or '.join(sorted(kinds - {'null'}))}")
    plain = _without_logical_types(definition)
    names = [name for name in _FIELDS if name in fields]
    time_type: Any = fields.get("timestamp", "null")
    rows = _one_by_one(plain, names) if _NOT_IN_BULK & set(_mentioned(plain)) else _in_bulk(plain, names)

    def read(values: pa.Array) -> pa.Table:
        return _columns(rows(values), time_type)

    return read


def _packages() -> tuple[Any, Any, Any]:
    try:
        from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra
        from pyruhvro import deserialize_array  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            "the topic holds Avro, which needs a package more: pip install 'karmalake[avro]'"
        ) from None
    return deserialize_array, schemaless_reader, parse_schema


def _in_bulk(schema: dict[str, Any], names: list[str]) -> _Read:
    deserialize, _, _ = _packages()
    text = json.dumps(schema)

    def rows(values: pa.Array) -> pa.Table:
        found = pa.Table.from_batches([deserialize(values.to_pylist(), text)]).select(names)
        found.validate(full=True)  # the package does not look whether a text is UTF-8
        return found

    return rows


def _one_by_one(schema: dict[str, Any], names: list[str]) -> _Read:
    _, read, parse_schema = _packages()
    parsed = parse_schema(schema)

    def rows(values: pa.Array) -> pa.Table:
        try:
            found = [read(BytesIO(value), parsed, None) for value in values.to_pylist()]
        except _DAMAGED as error:
            raise ValueError(str(error) or type(error).__name__) from None
        types = {"timestamp": pa.int64(), "metadata": METADATA}
        columns = {name: [row[name] for row in found] for name in names}
        if "metadata" in columns:
            columns["metadata"] = [row and list(row.items()) for row in columns["metadata"]]
        return pa.table({name: pa.array(column, types.get(name, pa.string())) for name, column in columns.items()})

    return rows


def _columns(rows: pa.Table, time_type: Any) -> pa.Table:
    """Return EVENT columns of rows that may lack some; raises ValueError for a time that no calendar holds."""

    def column(name: str, kind: pa.DataType, blank: Any) -> pa.Array:
        if name not in rows.column_names:
            return pa.repeat(pa.scalar(blank, kind), len(rows))
        return pc.fill_null(rows[name].combine_chunks().cast(kind), pa.scalar(blank, kind))

    texts = [column(name, pa.string(), "") for name in ("event_id", "user_id", "action_type")]
    times = column("timestamp", pa.int64(), None)
    return pa.table(
        [*texts, _event_times(times, set(map(_kind, _choices(time_type)))), column("metadata", METADATA, [])],
        schema=EVENT,
    )


def _event_times(times: pa.Array, kinds: set[str]) -> pa.Array:
    """Return counts since 1970 as TIMESTAMP, cut to whole microseconds."""
    if "timestamp-millis" in kinds:
        times = pc.multiply_checked(times, 1_000)
    if "timestamp-nanos" in kinds:
        whole = pc.fill_null(times, 0).to_numpy() // 1_000
        times = pa.array(whole, mask=pc.is_null(times).to_numpy(zero_copy_only=False))
    return times.cast(TIMESTAMP)


def _choices(of: Any) -> list[Any]:
    """Return the types that a value of a type may have: of a union its branches."""
    return of if isinstance(of, list) else [of]


def _kind(of: Any) -> str:
    """Return what a type is: its logical type, if that is a time; a map with what it holds; else its name."""
    if not isinstance(of, dict):
        return str(of)
    if of["type"] == "map":
        return f"map of {_kind(of['values'])}"
    logical = str(of.get("logicalType"))
    return logical if logical.startswith("timestamp-") else _kind(of["type"])


def _without_logical_types(of: Any) -> Any:
    """Return a schema that reads the same bytes as plain numbers and texts."""
    if isinstance(of, list):
        return [_without_logical_types(item) for item in of]
    if isinstance(of, dict):
        return {key: _without_logical_types(value) for key, value in of.items() if key != "logicalType"}
    return of


def _mentioned(of: Any) -> Iterator[str]:
    """Yield the types that a schema mentions, at any depth."""
    if isinstance(of, str):
        yield of
    elif isinstance(of, list):
        for item in of:
            yield from _mentioned(item)
    else:
        for inner in (of["type"], of.get("items", []), of.get("values", []), *_fields_of(of)):
            yield from _mentioned(inner)


def _fields_of(of: dict[str, Any]) -> list[Any]:
    return [field["type"] for field in of.get("fields", [])]
