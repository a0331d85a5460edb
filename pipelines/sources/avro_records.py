"""The records of an Avro container as tables, typed by the schema of the file."""

import io
from collections.abc import Callable, Collection, Iterator
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from pipelines.boundary.extras import extra
from pipelines.contract.schema import TIMESTAMP
from pipelines.sources.canonical import float_text
from pipelines.sources.refused import RefusedError
from pipelines.sources.text_columns import check_id, json_text

_RECORD_ROWS = 4_096
"""Of Avro, decoded into Python objects at a time."""


def avro_batches(path: str, ids: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield records, at least one batch; its schema says which columns are times, so that all batches have one form."""
    with extra("avro", "an Avro file"):
        import fastavro  # noqa: PLC0415 - only where a file is Avro
        from fastavro.read import BLOCK_READERS, LOGICAL_READERS  # noqa: PLC0415
    BLOCK_READERS["zstandard"] = partial(_read_zstandard, fastavro.schemaless_reader)  # its own needs another package
    for kind, read in LOGICAL_READERS.items():
        LOGICAL_READERS[kind] = partial(_read_or_none, read)
    with Path(path).open("rb") as file:
        records: Any = fastavro.reader(file)
        schema = records.writer_schema
        if not isinstance(schema, dict) or "fields" not in schema:
            raise RefusedError("its values are not records of one type: write rows as records of one type")
        kinds = {field["name"]: _avro_kind(field["type"]) for field in schema["fields"]}
        rows, row = list(islice(records, _RECORD_ROWS)), 1
        while True:
            for name in set(ids) & set(kinds):
                _check_union(name, [each[name] for each in rows], row)
            row += len(rows)
            yield pa.record_batch([_array([row[name] for row in rows], kind) for name, kind in kinds.items()], [*kinds])
            if not (rows := list(islice(records, _RECORD_ROWS))):
                return


def _read_zstandard(read: Callable[..., Any], decoder: Any) -> io.BytesIO:
    """Return the records of a block, which is stored as Avro's bytes are, compressed in one or more frames."""
    frames = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    return io.BytesIO(frames.decompress(read(decoder, "bytes", None)))


def _check_union(name: str, values: list[Any], row: int) -> None:
    """Raise RefusedError for an id of another type than text and integers, in a column of several types."""
    for number, value in enumerate(values, row):
        if isinstance(value, bool | float | bytes):
            column = pa.array([value])
            check_id(name, column.type, column, number)


def _read_or_none(read: Any, *arguments: Any) -> Any:
    """Return a value of a logical type; None for one that Python has not, such as the year 12000."""
    try:
        return read(*arguments)
    except (OverflowError, ValueError):
        return None


def _avro_kind(schema: Any) -> pa.DataType | None:
    """Return the type of a column of times or floats; None for others, and where a union has several types."""
    if isinstance(schema, list):
        kinds = [kind for kind in schema if kind != "null"]
        return _avro_kind(kinds[0]) if len(kinds) == 1 else None
    if isinstance(schema, dict):
        return _AVRO_TIMES.get(schema.get("logicalType", "")) or _avro_kind(schema.get("type"))
    return pa.float32() if schema == "float" else None


def _array(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """Return Python values as a column, as their JSON if they have several types, and times of no `kind` as text."""
    if kind is not None:
        return pa.array(values, kind)
    values = [value.isoformat() if isinstance(value, date) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array(map(_mixed_text, values), pa.string())


def _mixed_text(value: Any) -> str | None:
    if isinstance(value, float):
        return float_text(pa.array([value]))[0].as_py()
    return value if isinstance(value, str) else json_text(value)


_AVRO_TIMES = {
    "timestamp-millis": TIMESTAMP,
    "timestamp-micros": TIMESTAMP,
    "timestamp-nanos": pa.timestamp("ns", "UTC"),
    "local-timestamp-millis": pa.timestamp("us"),
    "local-timestamp-micros": pa.timestamp("us"),
    "local-timestamp-nanos": pa.timestamp("ns"),
    "date": pa.date32(),
}
