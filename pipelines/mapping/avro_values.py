"""Avro values of any schema as Arrow columns. Runs only in the worker process.

`fastavro` decides what a value is, and reads one at a time. Most values are read by `pyruhvro` many at a time: those
that it writes again byte for byte as they were, so that nothing of them is skipped, cut or rounded.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from io import BytesIO
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.boundary.extras import extra
from pipelines.boundary.text import amount
from pipelines.contract.avro_schema import bulk_cells_per_row, strip_annotations
from pipelines.contract.parsing import is_propagated

Columns = Callable[[pa.Array], pa.Array]
"""Decodes a binary array without nulls to an array of structs, or raises."""
_MAX_ONE_BY_ONE = 64
"""Values of a part that are read one at a time if they cannot be read together; a larger part is divided."""


def avro_columns(text: str) -> Columns:
    """Return a function that decodes values of a schema (JSON); it raises if one of them is invalid.

    Raises anything for an invalid schema.
    """
    with extra("avro", "a source of Avro"):
        from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415

    definition = json.loads(text)
    parsed = parse_schema(definition)
    kind, convert = _AvroTypes(_LOGICAL).of(definition, "")
    if not pa.types.is_struct(kind):
        kind, convert = pa.struct([("value", kind)]), partial(_wrapped, convert)

    def one_by_one(values: pa.Array) -> pa.Array:
        rows: list[Any] = []
        for value in values.to_pylist():
            stream = BytesIO(value)
            rows.append(convert(schemaless_reader(stream, parsed, None)))
            if stream.tell() != len(value):
                raise ValueError(f"{amount(len(value) - stream.tell(), 'byte follows', 'bytes follow')} it")
        return pa.array(rows, kind)

    together = _bulk_columns(definition, kind)
    return partial(_decode, together=together, one_by_one=one_by_one) if together else one_by_one


def _decode(values: pa.Array, *, together: Columns, one_by_one: Columns) -> pa.Array:
    """Decode values together if possible; of a few, that which cannot be read together is read alone."""
    try:
        return together(values)
    except BaseException as error:  # a Rust panic is not an Exception
        if is_propagated(error) or len(values) > _MAX_ONE_BY_ONE:
            raise
        return one_by_one(values)


def _bulk_columns(definition: Any, kind: pa.DataType) -> Columns | None:
    """Return a function that decodes values together, or raises; None if a type of the schema is not read that way.

    Logical types are annotations of numbers, as which they are read; other values than `fastavro` reads are refused.
    """
    plain = strip_annotations(definition)
    if not isinstance(plain, dict) or bulk_cells_per_row(plain) is None or not _logical_types(definition) <= {*_BULK}:
        return None
    from pyruhvro import deserialize_array, serialize_record_batch  # noqa: PLC0415 - an extra, which is required above

    text, written = json.dumps(plain), _AvroTypes({**_LOGICAL, **_BULK}).of(definition, "")[0]

    def decode(values: pa.Array) -> pa.Array:
        batch = deserialize_array(values.to_pylist(), text)
        again = pa.concat_arrays([pa.array([], pa.binary()), *serialize_record_batch(batch, text, 1)])
        if not again.equals(values):
            raise ValueError("a value is not written as others are")
        found = pa.Table.from_batches([batch]).to_struct_array().combine_chunks().cast(written)
        found.validate(full=True)  # the package does not check that strings are UTF-8
        if not all(map(_is_in_range, _times(found))):
            raise ValueError("a time is out of range")
        return found.cast(kind)

    try:
        decode(pa.array([], pa.binary()))
    except BaseException as error:  # a Rust panic is not an Exception
        if is_propagated(error):
            raise
        return None
    return decode


def _logical_types(schema: Any) -> set[str]:
    """Return the logical types in a schema."""
    if isinstance(schema, list):
        return {name for branch in schema for name in _logical_types(branch)}
    if not isinstance(schema, dict):
        return set()
    own = {str(schema["logicalType"])} if "logicalType" in schema else set[str]()
    return own | {name for value in schema.values() for name in _logical_types(value)}


def _times(values: pa.Array) -> Iterator[pa.Array]:
    """Yield the times and dates within structs, lists and maps."""
    kind = values.type
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from _times(values.field(number))
    elif pa.types.is_list(kind):
        yield from _times(values.values)
    elif pa.types.is_map(kind):
        yield from _times(values.items)
    elif pa.types.is_temporal(kind):
        yield values


def _is_in_range(times: pa.Array) -> bool:
    """Return whether times or dates are in the years 1 to 9999, as those of Python are."""
    limits = (date.min, date.max) if pa.types.is_date(times.type) else _LIMITS[times.type.tz is not None]
    return all(
        pc.all(compare(times, pa.scalar(limit, times.type)), min_count=0).as_py()
        for compare, limit in zip((pc.greater_equal, pc.less_equal), limits, strict=True)
    )


_LIMITS = {
    False: (datetime.min, datetime(9999, 12, 31, 23, 59, 59)),  # noqa: DTZ001, DTZ901 - local times have no zone
    True: (datetime.min.replace(tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
}
"""By whether times have a zone; in whole seconds, which all units have."""


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
_LOGICAL: Mapping[str, pa.DataType] = {
    "date": pa.date32(),
    "time-millis": pa.time32("ms"),
    "time-micros": pa.time64("us"),
    "timestamp-millis": pa.timestamp("us", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "local-timestamp-millis": pa.timestamp("us"),
    "local-timestamp-micros": pa.timestamp("us"),
    "uuid": pa.string(),
}
_BULK: Mapping[str, pa.DataType] = {
    "date": pa.date32(),
    "timestamp-millis": pa.timestamp("ms", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "local-timestamp-millis": pa.timestamp("ms"),
    "local-timestamp-micros": pa.timestamp("us"),
}
"""The logical types that are read in bulk, with the types that have the same numbers."""
_MAX_PRECISION = 38
"""Digits of a DECIMAL in DuckDB; a longer one is text."""
_Convert = Callable[[Any], Any]


class _AvroTypes:
    """The Arrow types of Avro types, each with the conversion of what fastavro reads."""

    def __init__(self, logical: Mapping[str, pa.DataType]) -> None:
        self.logical = logical
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
        if not others:
            return pa.null(), _same
        if len(others) > 1:
            is_single = "float" in schema and "double" not in schema
            return pa.string(), (lambda value: _as_json(_shortest(value))) if is_single else _as_json
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
        logical = str(schema.get("logicalType"))
        if logical == "decimal":
            precision, scale = int(schema["precision"]), int(schema.get("scale", 0))
            if precision > _MAX_PRECISION:
                return pa.string(), lambda number: format(number, "f")
            return pa.decimal128(precision, scale), _same
        return (self.logical[logical], _uuid if logical == "uuid" else _same) if logical in self.logical else plain


def _wrapped(convert: _Convert, value: Any) -> dict[str, Any]:
    return {"value": convert(value)}


def _same(value: Any) -> Any:
    return value


def _uuid(value: Any) -> str:
    return str(UUID(bytes=value) if isinstance(value, bytes) else value)


def _shortest(value: Any) -> Any:
    """Return a float of 32 bits as the shortest number that is it; others as they are."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=_text, ensure_ascii=False)


def _text(value: Any) -> str:
    """Return bytes as Avro's JSON has them, a character for each, decimals in plain digits, others as Python does."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
