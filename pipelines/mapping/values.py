"""Values of a foreign schema as Arrow columns. Runs only in the worker process: any value may end or stall it."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import base64
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.boundary.extras import extra
from pipelines.contract.parsing import is_propagated
from pipelines.mapping.json_values import exact_json
from pipelines.mapping.proto_files import message_type

Columns = Callable[[pa.Array], pa.Array]
"""Decodes a binary array without nulls to an array of structs, or raises."""


@dataclass(frozen=True, slots=True)
class ValueSchema:
    """How values are decoded: the writer's schema, with all schemas that it refers to."""

    format: str
    text: str = ""
    message: str = ""
    """Of Protobuf: the full name of the message, or its indexes in the file, such as "1,0"."""
    references: tuple[tuple[str, str], ...] = field(default=())
    """Of Protobuf: the names and texts of the files that it imports."""

    @classmethod
    def of_rows(cls, columns: pa.Schema) -> "ValueSchema":
        """Return the schema of rows of files: they are columns already."""
        return cls("rows", base64.b64encode(columns.remove_metadata().serialize()).decode())

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ValueSchema":
        """Return what `to_json` wrote."""
        found = json.loads(text)
        return cls(**found | {"references": tuple((name, content) for name, content in found["references"])})


ANY = ValueSchema("any")
"""A schema that is not known yet."""


def decode_values(values: pa.Array, schema: ValueSchema) -> tuple[pa.Array, dict[int, str]]:
    """Decode a binary array; return an array with null where a value is null or cannot be decoded, and why by row.

    Raises ValueError for a schema that cannot be read.
    """
    if schema.format == "rows":
        return values, {}
    present = values.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(present)
    given = values if present.all() else values.take(pa.array(rows))
    if schema.format == "json":
        found, errors = exact_json(given)
    else:
        found, errors = _by_halves(given, _decoder(schema))
    places = pa.array(np.cumsum(present) - 1, mask=~present)
    return found.take(places), {int(rows[row]): error for row, error in errors.items()}


def arrow_type(schema: ValueSchema) -> pa.DataType:
    """Return the type of the decoded values. Raises ValueError for a schema that cannot be read."""
    if schema.format == "rows":
        return pa.struct(list(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema.text)))))
    return pa.string() if schema.format == "json" else _decoder(schema)(pa.array([], pa.binary())).type


def _by_halves(values: pa.Array, decode: Columns) -> tuple[pa.Array, dict[int, str]]:
    """Decode values together; halve those with which that fails until the value that fails alone is found."""
    try:
        return decode(values), {}
    except BaseException as error:  # a Rust panic is not an Exception, and any value may cause one
        if is_propagated(error):
            raise
        if len(values) == 1:
            kind = decode(values.slice(0, 0)).type
            return pa.nulls(1, kind), {0: str(error) or type(error).__name__}
    half = len(values) // 2
    first, first_errors = _by_halves(values.slice(0, half), decode)
    second, second_errors = _by_halves(values.slice(half), decode)
    joined = pa.concat_arrays([first, second])
    return joined, first_errors | {half + row: error for row, error in second_errors.items()}


@lru_cache(maxsize=256)
def _decoder(schema: ValueSchema) -> Columns:
    try:
        return _avro(schema.text) if schema.format == "avro" else _protobuf(schema)
    except BaseException as error:
        if is_propagated(error):
            raise
        raise ValueError(f"its schema cannot be read: {str(error) or type(error).__name__}") from None


def _protobuf(schema: ValueSchema) -> Columns:
    from ptars import HandlerPool, PtarsConfig  # noqa: PLC0415

    descriptor = message_type(schema.text, schema.message, schema.references)
    config = PtarsConfig(timestamp_unit="us", time_unit="us", duration_unit="us", enum_repr="string")
    handler = HandlerPool([descriptor.file], config).get_for_message(descriptor)

    def decode(values: pa.Array) -> pa.Array:
        return _validated(pa.Table.from_batches([handler.array_to_record_batch(values)]).to_struct_array())

    return decode


def _validated(columns: pa.Array | pa.ChunkedArray) -> pa.Array:
    found = columns.combine_chunks() if isinstance(columns, pa.ChunkedArray) else columns
    found.validate(full=True)  # the decoders do not check that strings are UTF-8
    return found


def _avro(text: str) -> Columns:
    with extra("avro", "a source of Avro"):
        from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415

    definition = json.loads(text)
    parsed = parse_schema(definition)
    kind, convert = _AvroTypes().of(definition, "")
    if not pa.types.is_struct(kind):
        kind, convert = pa.struct([("value", kind)]), partial(_wrapped, convert)

    def decode(values: pa.Array) -> pa.Array:
        rows: list[Any] = []
        for value in values.to_pylist():
            stream = BytesIO(value)
            rows.append(convert(schemaless_reader(stream, parsed, None)))
            if stream.tell() != len(value):
                raise ValueError(f"{len(value) - stream.tell()} bytes follow it")
        return pa.array(rows, kind)

    return decode


_PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_LOGICAL = {
    "date": pa.date32(),
    "time-millis": pa.time32("ms"),
    "time-micros": pa.time64("us"),
    "timestamp-millis": pa.timestamp("us", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "local-timestamp-millis": pa.timestamp("us"),
    "local-timestamp-micros": pa.timestamp("us"),
    "uuid": pa.string(),
}
_MAX_PRECISION = 38
"""Digits of a DECIMAL in DuckDB; a longer one is text."""
_Convert = Callable[[Any], Any]


class _AvroTypes:
    """The Arrow types of Avro types, each with the conversion of what fastavro reads."""

    def __init__(self) -> None:
        self.named: dict[str, tuple[pa.DataType, _Convert]] = {}
        self.open: set[str] = set()

    def of(self, schema: Any, namespace: str) -> tuple[pa.DataType, _Convert]:
        """Return the type of a schema; a union of several types, and a type within itself, is JSON in a string."""
        if isinstance(schema, list):
            return self._union(schema, namespace)
        if isinstance(schema, str):
            if schema in _PRIMITIVES:
                return _PRIMITIVES[schema], _same
            name = schema if "." in schema or not namespace else f"{namespace}.{schema}"
            return self.named.get(name) or self.named.get(schema) or (pa.string(), _as_json)
        match schema["type"]:
            case "record" | "error":
                return self._record(schema, namespace)
            case "enum":
                return self._remember(schema, namespace, (pa.string(), _same))
            case "fixed":
                return self._remember(schema, namespace, self._logical(schema, (pa.binary(), _same)))
            case "array":
                kind, convert = self.of(schema["items"], namespace)
                return pa.list_(kind), lambda items: [convert(item) for item in items]
            case "map":
                kind, convert = self.of(schema["values"], namespace)
                return pa.map_(pa.string(), kind), lambda items: [(key, convert(item)) for key, item in items.items()]
            case inner:
                return self._logical(schema, self.of(inner, namespace))

    def _union(self, schema: list[Any], namespace: str) -> tuple[pa.DataType, _Convert]:
        others = [self.of(branch, namespace) for branch in schema if branch != "null"]
        if len(others) != 1:
            return (pa.string(), _as_json) if others else (pa.null(), _same)
        kind, convert = others[0]
        return kind, lambda value: None if value is None else convert(value)

    def _record(self, schema: dict[str, Any], namespace: str) -> tuple[pa.DataType, _Convert]:
        name = str(schema["name"])
        full = (
            name
            if "." in name or not (schema.get("namespace") or namespace)
            else f"{schema.get('namespace') or namespace}.{name}"
        )
        inner = full.rpartition(".")[0]
        fields = {each["name"]: self.of(each["type"], inner) for each in schema["fields"]}
        kind = pa.struct([(each, field_type) for each, (field_type, _) in fields.items()])

        def convert_row(row: Any) -> dict[str, Any]:
            return {each: convert(row[each]) for each, (_, convert) in fields.items()}

        found = (kind, convert_row)
        self.named[full] = found
        return found

    def _remember(self, schema: dict[str, Any], namespace: str, found: tuple[pa.DataType, _Convert]) -> Any:
        name = str(schema["name"])
        space = schema.get("namespace") or namespace
        self.named[name if "." in name or not space else f"{space}.{name}"] = found
        return found

    def _logical(self, schema: dict[str, Any], plain: tuple[pa.DataType, _Convert]) -> tuple[pa.DataType, _Convert]:
        logical = schema.get("logicalType")
        if logical == "decimal":
            precision, scale = int(schema["precision"]), int(schema.get("scale", 0))
            if precision > _MAX_PRECISION:
                return pa.string(), lambda number: format(number, "f")
            return pa.decimal128(precision, scale), _same
        return (_LOGICAL[logical], str if logical == "uuid" else _same) if logical in _LOGICAL else plain


def _wrapped(convert: _Convert, value: Any) -> dict[str, Any]:
    return {"value": convert(value)}


def _same(value: Any) -> Any:
    return value


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str, ensure_ascii=False)
