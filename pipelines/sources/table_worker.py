"""A worker process that decodes one file with limited memory and time; a crash of it becomes an error message.

Run by `table_rows.py`. It reads a request, one line of JSON, and writes frames: 1 byte of kind, 8 bytes of length,
the content. Kind `t` is a table as an Arrow stream, `r` the reason why the file is rejected, `e` the end.
"""

import json
import resource
import signal
import struct
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute, orc

from pipelines.errors import KarmalakeError
from pipelines.sources.avro_records import avro_batches
from pipelines.sources.bounds import (
    CHUNK_BYTES,
    MAX_COLUMNS,
    MAX_NAME_BYTES,
    MAX_PARQUET_BYTES,
    MAX_ROW_BYTES,
    mebibytes,
)
from pipelines.sources.refused import RefusedError
from pipelines.sources.text_columns import as_text
from pipelines.sources.workbook import excel_batches

pc: Any = compute  # its functions are generated at import, invisible to pyright
_BLOCK_BYTES = 1024 * 1024
_DELTA_ROWS = 4_096
_MAX_SECONDS = 600
"""For decoding one batch: a file that takes longer is hostile or damaged."""
_MAX_REASON_CHARS = 300
"""Of what a library says: fastavro quotes the whole schema of a file."""


def main() -> None:
    """Serve one request."""
    request = json.loads(sys.stdin.buffer.readline())
    _limit_memory()
    out = sys.stdout.buffer
    try:
        ids = frozenset(request["ids"])
        for table in _in_time(
            _tables(request["path"], request["format"], ids, request["names"], request["chunk_rows"])
        ):
            _write(out, b"t", _as_stream(table))
        _write(out, b"e", b"")
    except (RefusedError, KarmalakeError) as error:
        _write(out, b"r", str(error).encode())
    except MemoryError:
        _write(out, b"r", f"reading it needs over {mebibytes(MAX_PARQUET_BYTES)}".encode())
    except Exception as error:  # noqa: BLE001 - each library has errors of its own, such as for a password
        reason = (str(error).splitlines() or [type(error).__name__])[0][:_MAX_REASON_CHARS]
        _write(out, b"r", f"it cannot be read as {request['format']}: {reason}".encode(errors="replace"))


def _limit_memory() -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the limit is not enforced by the system
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MAX_PARQUET_BYTES, now + MAX_PARQUET_BYTES))


def _in_time(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the tables; the process ends by SIGALRM if one takes too long."""
    signal.alarm(_MAX_SECONDS)
    for table in tables:
        signal.alarm(0)  # the reader takes its time
        yield table
        signal.alarm(_MAX_SECONDS)
    signal.alarm(0)


def _tables(path: str, form: str, ids: frozenset[str], names: list[str], chunk_rows: int) -> Iterator[pa.Table]:
    row = 1
    for batch in _batches(path, form, ids, names, chunk_rows):
        _check_names(batch.schema.names)
        for piece in _split(batch, row):
            yield as_text(piece, ids, row)
            row += len(piece)


def _batches(path: str, form: str, ids: frozenset[str], names: list[str], chunk_rows: int) -> Iterator[pa.RecordBatch]:
    if form == "xlsx":
        return excel_batches(path, chunk_rows, names, ids)
    return avro_batches(path, ids) if form == "avro" else _BATCHES[form](path, chunk_rows)


def _parquet_batches(path: str, chunk_rows: int) -> Iterator[pa.RecordBatch]:
    schema, metadata = pq.read_schema(path), pq.read_metadata(path)
    _check_names(schema.names)
    delta = _delta_columns(metadata)
    instants = _int96_columns(metadata)
    strings = {field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_binary(field.type)}
    # A dictionary holds a repeated long value once. Delta-encoded columns have none: decode few rows at a time.
    dictionaries = sorted((strings - delta) & _repeating_columns(metadata, CHUNK_BYTES // chunk_rows))
    batch_rows = min(chunk_rows, _DELTA_ROWS) if delta else chunk_rows
    rows = 0
    with pq.ParquetFile(
        path,
        read_dictionary=dictionaries,
        buffer_size=_BLOCK_BYTES,
        pre_buffer=False,
        coerce_int96_timestamp_unit="us",  # of nanoseconds, those after 2262 are other times
    ) as file:
        for batch in file.iter_batches(batch_rows, use_threads=False):
            rows += len(batch)
            yield _with_zones(batch, instants)
        if rows != file.metadata.num_rows:
            raise RefusedError(
                f"it declares {file.metadata.num_rows:,} rows and has {rows:,}: it is damaged; write it again"
            )


def _with_zones(batch: pa.RecordBatch, instants: Collection[str]) -> pa.RecordBatch:
    """Return a batch whose columns `instants` have the zone UTC, which their form in Parquet cannot name."""
    for number, name in enumerate(batch.schema.names):
        if name in instants:
            column = batch.column(number)
            batch = batch.set_column(number, name, column.cast(pa.timestamp(column.type.unit, "UTC")))
    return batch


def _arrow_batches(path: str, chunk_rows: int) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(path) as file:
        try:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            yield from (batch.slice(start, chunk_rows) for start in range(0, len(batch), chunk_rows) or [0])


def _orc_batches(path: str, chunk_rows: int) -> Iterator[pa.RecordBatch]:
    file = orc.ORCFile(path)
    for stripe in range(file.nstripes):
        batch = file.read_stripe(stripe)
        yield from (batch.slice(start, chunk_rows) for start in range(0, len(batch), chunk_rows))


_BATCHES = {
    "parquet": _parquet_batches,
    "arrow": _arrow_batches,
    "orc": _orc_batches,
}


def _int96_columns(file: pq.FileMetaData) -> set[str]:
    """Return the columns of the deprecated INT96, by which Spark and Hive write instants: Arrow reads them as naive."""
    columns = (file.schema.column(number) for number in range(file.num_columns))
    return {column.path for column in columns if column.physical_type == "INT96"}


def _delta_columns(file: pq.FileMetaData) -> set[str]:
    """Return the columns that are delta-encoded anywhere in the file."""
    return {
        chunk.path_in_schema
        for chunk in _column_chunks(file)
        if any("DELTA" in encoding for encoding in chunk.encodings)
    }


def _repeating_columns(file: pq.FileMetaData, long_bytes: int) -> set[str]:
    """Return the columns that have a dictionary anywhere in the file, or values longer than `long_bytes` on average.

    In others a dictionary of our own would hash every value and save nothing: ids take several times as long to decode.
    """
    return {
        chunk.path_in_schema
        for chunk in _column_chunks(file)
        if any("DICTIONARY" in encoding for encoding in chunk.encodings)
        or chunk.total_uncompressed_size > long_bytes * chunk.num_values
    }


def _column_chunks(file: pq.FileMetaData) -> Iterator[pq.ColumnChunkMetaData]:
    for group in range(file.num_row_groups):
        yield from (file.row_group(group).column(place) for place in range(file.num_columns))


def _check_names(names: list[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise RefusedError(f"has {len(names):,} columns; at most {MAX_COLUMNS:,} are read: remove some")
    for name in names:
        if len(name.encode()) > MAX_NAME_BYTES:
            raise RefusedError(f"a column's name is longer than {MAX_NAME_BYTES:,} bytes: {name[:80]!r}...")
        if names.count(name) > 1:
            raise RefusedError(f"several columns are named {name!r}: rename one")


def _split(batch: pa.RecordBatch, row: int) -> Iterator[pa.RecordBatch]:
    """Split a batch so that each piece is at most CHUNK_BYTES with its dictionaries expanded."""
    sizes = sum((_sizes(column) for column in batch.columns), np.zeros(len(batch), np.int64))
    if len(sizes) and sizes.max() > MAX_ROW_BYTES:
        raise RefusedError(
            f"row {row + int(sizes.argmax())} is longer than {mebibytes(MAX_ROW_BYTES)}: remove long values"
        )
    start = 0
    if not len(batch):
        yield batch
    while start < len(batch):
        rows = max(1, int(np.searchsorted(np.cumsum(sizes[start:]), CHUNK_BYTES, side="right")))
        yield batch.slice(start, rows)
        start += rows


def _sizes(column: pa.Array) -> np.ndarray:
    """Return the approximate size of each row of a column as text: shape (rows,), int64, in bytes."""
    if pa.types.is_dictionary(column.type):
        values = _lengths(column.dictionary)
        return _without_nulls(values.take(column.indices))
    return _without_nulls(_lengths(column))


def _lengths(values: pa.Array) -> pa.Array:
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return _lengths(values.storage)
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        return pc.binary_length(values).cast(pa.int64())
    if pa.types.is_large_binary(kind):
        return pc.binary_length(values)
    if pa.types.is_fixed_size_binary(kind):
        return pa.repeat(2 * kind.byte_width, len(values))
    if pa.types.is_nested(kind):
        return pa.repeat(values.nbytes // max(1, len(values)), len(values))
    return pa.repeat(16, len(values))


def _without_nulls(lengths: pa.Array) -> np.ndarray:
    return pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _as_stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _write(out: BinaryIO, kind: bytes, content: Any) -> None:
    out.write(kind + struct.pack(">Q", len(content)))
    out.write(content)
    out.flush()


if __name__ == "__main__":
    main()
