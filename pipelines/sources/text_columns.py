"""Columns of any type as text, each value as exact as it is; ids that were rounded are refused."""

import json
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import TIMESTAMP
from pipelines.sources.canonical import decimal_text, float_text
from pipelines.sources.refused import RefusedError

pc: Any = compute  # its functions are generated at import, invisible to pyright
MAX_EXACT_FLOAT = 2**53
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
NOTE = b"note"
"""Schema metadata: what was found about the form of the file and is not the usual."""
UNREADABLE = b"unreadable"
"""Field metadata of a column without a text form: its type."""


def as_text(batch: pa.RecordBatch, ids: frozenset[str], row: int) -> pa.Table:
    """Return a piece as columns of `rows.Rows`; one without a text form is null, its type in the metadata."""
    fields: list[pa.Field] = []
    columns: list[pa.Array] = []
    for name, kind, column in zip(batch.schema.names, batch.schema.types, batch.columns, strict=True):
        if name in ids:
            check_id(name, kind, column, row)
        try:
            text = _to_format(column)
            text.validate(full=True)
            fields.append(pa.field(name, text.type))
        except (pa.ArrowNotImplementedError, NotImplementedError, TypeError):
            text = pa.nulls(len(column), pa.string())
            fields.append(pa.field(name, pa.string(), metadata={UNREADABLE: str(kind).encode()}))
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise RefusedError(f"column {name!r} cannot be read: {str(error).splitlines()[0]}") from None
        columns.append(text)
    return pa.table(columns, pa.schema(fields, {NOTE: (batch.schema.metadata or {}).get(NOTE, b"")}))


def check_id(name: str, kind: pa.DataType, column: pa.Array, row: int) -> None:
    """Raise RefusedError for an id column of an unsuitable type or with rounded numbers."""
    if pa.types.is_dictionary(kind):
        kind, column = kind.value_type, column.dictionary_decode()
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name in {"arrow.uuid", "arrow.json"}:
        return
    if pa.types.is_floating(kind):
        _check_floats(name, column.cast(pa.float64()), row)
    elif pa.types.is_nested(kind) or pa.types.is_boolean(kind) or _is_binary(kind):
        raise RefusedError(f"column {name!r} has type {kind}, which is not an id: choose a column of text or integers")


def _check_floats(name: str, values: pa.Array, row: int) -> None:
    numbers = values.to_numpy(zero_copy_only=False)
    invalid = np.flatnonzero(
        (np.abs(numbers) > MAX_EXACT_FLOAT) | (np.isfinite(numbers) & (numbers != np.floor(numbers)))
    )
    if len(invalid):
        value, place = numbers[invalid[0]], row + int(invalid[0])
        reason = "above 2^53 the last digits are lost" if abs(value) > MAX_EXACT_FLOAT else "it has a fraction"
        raise RefusedError(
            f"row {place}, column {name!r}: {value} is a float, not an id: {reason}; write ids as integers or text"
        )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _to_format(column: pa.Array) -> pa.Array:
    """Return a column as text without nulls; timestamps and dates keep their type, also whether they have a zone."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return _timestamps(column)
    if pa.types.is_date(kind):
        return _dates(column)
    if pa.types.is_dictionary(kind):
        texts = _to_format(column.dictionary)
        return texts.take(column.indices) if texts.type != pa.string() else pc.fill_null(texts.take(column.indices), "")
    return pc.fill_null(_format(column, kind), "")


def _format(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return pa.array(
                [None if value is None else str(uuid.UUID(bytes=value)) for value in column.storage.to_pylist()],
                pa.string(),
            )
        return _format(column.storage, column.storage.type)
    if pa.types.is_floating(kind):
        return float_text(column.cast(pa.float32()) if pa.types.is_float16(kind) else column)
    if pa.types.is_decimal(kind):
        return decimal_text(column)
    if pa.types.is_duration(kind):
        return column.cast(pa.int64()).cast(pa.string())
    if pa.types.is_nested(kind) or _is_binary(kind):
        return pa.array([json_text(value) for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def _timestamps(column: pa.Array) -> pa.Array:
    """Return timestamps in microseconds, in UTC or without a zone; null outside the years 1 to 9999: no overflow."""
    kind = TIMESTAMP if column.type.tz else pa.timestamp("us")
    per_second = _PER_SECOND[column.type.unit]
    counts = column.cast(pa.timestamp(column.type.unit)).cast(pa.int64())
    low, high = _FIRST_SECOND * per_second, _LAST_SECOND * per_second
    if per_second < _PER_SECOND["ns"]:
        within = pc.and_(pc.greater_equal(counts, low), pc.less_equal(counts, high))
        return pc.multiply(pc.if_else(within, counts, None), _PER_SECOND["us"] // per_second).cast(kind)
    return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(kind)


def _dates(column: pa.Array) -> pa.Array:
    """Return dates; null outside the years 1 to 9999, as for timestamps."""
    per_day, width = (86_400_000, pa.int64()) if pa.types.is_date64(column.type) else (1, pa.int32())
    counts = column.cast(width)
    low, high = _FIRST_SECOND // 86_400 * per_day, (_LAST_SECOND // 86_400 + 1) * per_day
    within = pc.and_(pc.greater_equal(counts, low), pc.less(counts, high))
    return pc.if_else(within, column, None).cast(pa.date32())


def json_text(value: Any) -> str | None:
    """Return a Python value as JSON; None for none."""
    if value is None:
        return None
    return (
        value.hex()
        if isinstance(value, bytes)
        else json.dumps(value, default=_in_json, sort_keys=True, ensure_ascii=False)
    )


def _in_json(value: Any) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.hex() if isinstance(value, bytes) else str(value)
