"""A worker process that decodes one file with limited memory and time; a crash of it becomes an error message.

Run by `table_rows.py`. It reads a request, one line of JSON, and writes frames: 1 byte of kind, 8 bytes of length,
the content. Kind `t` is a table as an Arrow stream, `r` the reason why the file is rejected, `e` the end.
"""

import io
import json
import re
import resource
import signal
import struct
import sys
import uuid
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import date
from decimal import Decimal
from functools import partial, reduce
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute, orc

from pipelines.boundary.extras import extra
from pipelines.contract.schema import TIMESTAMP
from pipelines.errors import KarmalakeError
from pipelines.sources.bounds import (
    CHUNK_BYTES,
    MAX_COLUMNS,
    MAX_NAME_BYTES,
    MAX_PARQUET_BYTES,
    MAX_ROW_BYTES,
    mebibytes,
)
from pipelines.sources.canonical import decimal_text, float_text
from pipelines.sources.dialect import has_names

pc: Any = compute  # its functions are generated at import, invisible to pyright
_MAX_EXACT_FLOAT = 2**53
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_BLOCK_BYTES = 1024 * 1024
_DELTA_ROWS = 4_096
_RECORD_ROWS = 4_096
"""Of Avro, decoded into Python objects at a time."""
_MAX_ROWS_ABOVE_HEADER = 20
"""Of Excel: a title, who exported it, and blank rows."""
_MAX_SECONDS = 600
"""For decoding one batch: a file that takes longer is hostile or damaged."""
_MAX_REASON_CHARS = 300
"""Of what a library says: fastavro quotes the whole schema of a file."""
_MAX_SHOWN_SHEETS = 20
_MANY_DIGITS = "^-?[0-9]{16,30}$"
_ZIP = b"PK\x03\x04"
_WORKBOOKS = (_ZIP, b"\xd0\xcf\x11\xe0")
"""How workbooks begin: ZIP archives, and those of Excel before 2007."""
_WORKSHEETS = "xl/worksheets/"
_FORMULA_WITHOUT_VALUE = re.compile(
    rb"""<(?:\w+:)?c\b(?![^>]*\bt=["']str)[^>]*>\s*<(?:\w+:)?f\b[^>]*(?:/>|>[^<]*</(?:\w+:)?f>)\s*"""
    rb"""(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v>\s*</(?:\w+:)?v>)?\s*</(?:\w+:)?c>"""
)
"""A cell of a sheet; an empty text is a value, and has the type `str`."""
NOTE = b"note"
"""Schema metadata: what was found about the form of the file and is not the usual."""
UNREADABLE = b"unreadable"
"""Field metadata of a column without a text form: its type."""


class RefusedError(Exception):
    """The file is rejected; the message says why."""


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
            yield _as_text(piece, ids, row)
            row += len(piece)


def _batches(path: str, form: str, ids: frozenset[str], names: list[str], chunk_rows: int) -> Iterator[pa.RecordBatch]:
    if form == "xlsx":
        return _excel_batches(path, chunk_rows, names, ids)
    return _avro_batches(path, ids) if form == "avro" else _BATCHES[form](path, chunk_rows)


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


def _avro_batches(path: str, ids: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield records, at least one batch; its schema says which columns are times, so that all batches have one form."""
    with extra("avro", "an Avro file"):
        import fastavro  # noqa: PLC0415 - only where a file is Avro
        from fastavro.read import LOGICAL_READERS  # noqa: PLC0415
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


def _check_union(name: str, values: list[Any], row: int) -> None:
    """Raise RefusedError for an id of another type than text and integers, in a column of several types."""
    for number, value in enumerate(values, row):
        if isinstance(value, bool | float | bytes):
            column = pa.array([value])
            _check_id(name, column.type, column, number)


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


def _excel_batches(
    path: str, chunk_rows: int, names: Collection[str], ids: Collection[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all sheets that have the mapped names, or the columns of the first sheet if none are mapped."""
    with extra("excel", "an Excel file"):
        fastexcel: Any = import_module("fastexcel")
    content = Path(path).read_bytes()  # its reader finds the kind of a workbook in it, and from a path in its name
    if not content.startswith(_WORKBOOKS):
        raise RefusedError(
            "it is no workbook, though it is called one: save it as .xlsx, or give --format csv for text"
        )
    book = fastexcel.read_excel(content)
    sheets, note = _sheets(book, names)
    tables, failed = _sheet_tables(book, sheets, fastexcel.UnsupportedColumnTypeCombinationError)
    table = pa.concat_tables(tables, promote_options="default")
    table = table.filter(_has_values(table))
    for name in set(ids) & set(table.column_names):
        _check_digits(book, sheets, name, table[name], fastexcel.UnsupportedColumnTypeCombinationError)
    notes = filter(None, [note, _note_of_errors(failed), _note_of_formulas(content)])
    table = table.replace_schema_metadata({NOTE: ", ".join(notes).encode()})
    yield from table.to_batches(chunk_rows) or [pa.RecordBatch.from_pylist([], table.schema)]  # its columns are checked


def _has_values(table: pa.Table) -> pa.ChunkedArray:
    """Return whether each row has a value: one cell far below the others makes a million rows without."""
    return reduce(pc.or_, (pc.is_valid(column) for column in table.columns))


def _sheets(book: Any, names: Collection[str]) -> tuple[dict[str, int], str]:
    """Return the number of the header row by the name of each sheet that is read, and a note about several sheets.

    The header is the first of the rows on top that has the mapped names, as below a title. If no sheet has them, or
    none are mapped, the first one is read that has several columns, unlike a cover; an error says what it has.
    """
    tops = {sheet: top for sheet in book.sheet_names if (top := _top_rows(book, sheet))}
    if not tops:
        raise RefusedError("it is empty: the first row must name the columns")
    first = next((sheet for sheet, top in tops.items() if sum(map(bool, top[0])) > 1), next(iter(tops)))
    wanted = names or [name for name in tops[first][0] if name]
    found = {sheet: _header_row(top, wanted) for sheet, top in tops.items()}
    read = {sheet: row for sheet, row in found.items() if row is not None} or {first: 0}
    for sheet, row in read.items():
        twice = [name for name, count in Counter(tops[sheet][row]).items() if count > 1 and name in wanted]
        if twice:
            raise RefusedError(f"sheet {sheet!r}: several columns are named {twice[0]!r}: rename one")
    others = [sheet for sheet in tops if sheet not in read]
    note = f"{len(read)} of {len(tops)} sheets are read: {_shown(read)}"
    return read, f"{note}; without the columns: {_shown(others)}" if others else note * (len(read) > 1)


def _shown(sheets: Collection[str]) -> str:
    more = ", ..." if len(sheets) > _MAX_SHOWN_SHEETS else ""
    return f"{', '.join(map(repr, islice(sheets, _MAX_SHOWN_SHEETS)))}{more}"


def _top_rows(book: Any, sheet: str) -> list[list[str]]:
    """Return the rows on top of a sheet as text; none of an empty sheet, or one of charts."""
    top = book.load_sheet(sheet, header_row=None, skip_rows=0, n_rows=_MAX_ROWS_ABOVE_HEADER + 1, dtypes="string")
    columns = [column.to_pylist() for column in top.to_arrow().columns] if top.width else []
    return [[text or "" for text in row] for row in zip(*columns, strict=True)]


def _header_row(top: list[list[str]], names: Collection[str]) -> int | None:
    return next((number for number, row in enumerate(top) if has_names(row, names)), None)


def _sheet_tables(book: Any, sheets: dict[str, int], unsupported: type[Exception]) -> tuple[list[pa.Table], list[str]]:
    """Return the rows of sheets, as text unless each column has one type in all of them, and where cells have errors.

    A place is like "column 'n' of sheet 'a'", once for each cell.
    """
    try:
        tables, failed = _read_sheets(book, sheets)
        pa.unify_schemas([table.schema for table in tables])
    except (unsupported, pa.ArrowInvalid, pa.ArrowTypeError):
        return _read_sheets(book, sheets, dtypes="string")
    return tables, failed


def _read_sheets(book: Any, sheets: dict[str, int], **options: Any) -> tuple[list[pa.Table], list[str]]:
    tables: list[pa.Table] = []
    failed: list[str] = []
    for sheet, row in sheets.items():
        found, errors = _load_sheet(book, sheet, row, **options).to_arrow_with_errors()
        tables.append(pa.Table.from_batches([found]))
        cells = [error for error in (errors.errors if errors else ()) if "Error(" in error.detail]  # others are blank
        failed += [f"column {found.schema.names[cell.offset_position[1]]!r} of sheet {sheet!r}" for cell in cells]
    return tables, failed


def _load_sheet(book: Any, sheet: str, row: int, **options: Any) -> Any:
    return book.load_sheet(sheet, header_row=row, schema_sample_rows=None, **options)


def _note_of_errors(places: Sequence[str]) -> str:
    """Return what becomes of the cells with errors at these places; empty if there are none."""
    if not places:
        return ""
    return f"cells with an error such as #N/A, which count as empty: {len(places):,}, first in {places[0]}"


def _note_of_formulas(content: bytes) -> str:
    """Return that formulas of an .xlsx file have no value, as programs write them that compute none; else empty."""
    count = 0
    if content.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                if name.startswith(_WORKSHEETS) and name.endswith(".xml"):
                    with archive.open(name) as sheet:
                        count += _formulas_without_value(sheet)
    said = "formulas without a value, which count as empty until the workbook is opened in a spreadsheet and saved"
    return f"{said}: {count:,}" if count else ""


def _formulas_without_value(sheet: IO[bytes]) -> int:
    count, rest = 0, b""
    while block := sheet.read(_BLOCK_BYTES):
        cells, end, rest = (rest + block).rpartition(b"c>")
        count += len(_FORMULA_WITHOUT_VALUE.findall(cells + end))
    return count


def _check_digits(
    book: Any, sheets: dict[str, int], name: str, values: pa.ChunkedArray, unsupported: type[Exception]
) -> None:
    """Raise RefusedError for an id of many digits that may be a number, as text beside others: its last are lost."""
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        return  # `_check_id` knows floats
    long = pc.fill_null(pc.match_substring_regex(values, _MANY_DIGITS), fill_value=False)
    rounded = [row for row in pc.indices_nonzero(long).to_pylist() if _is_of_a_float(values[row].as_py())]
    if not rounded:
        return
    try:
        tables = [_load_sheet(book, *sheet, use_columns=[name], dtype_coercion="strict") for sheet in sheets.items()]
        if all(pa.types.is_string(table.to_arrow().schema.types[0]) for table in tables):
            return  # all of them are text
    except unsupported:
        pass
    raise RefusedError(
        f"row {rounded[0] + 1}, column {name!r}: {values[rounded[0]].as_py()} may be a number, of which Excel drops "
        "the last digits: write all ids of the column as text"
    )


def _is_of_a_float(digits: str) -> bool:
    """Return whether digits are as a float above 2^53 is written."""
    number = float(digits)
    return abs(number) > _MAX_EXACT_FLOAT and digits in {f"{number:.0f}", f"{Decimal(repr(number)):f}"}


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
    return value if isinstance(value, str) else _json(value)


_AVRO_TIMES = {
    "timestamp-millis": TIMESTAMP,
    "timestamp-micros": TIMESTAMP,
    "timestamp-nanos": pa.timestamp("ns", "UTC"),
    "local-timestamp-millis": pa.timestamp("us"),
    "local-timestamp-micros": pa.timestamp("us"),
    "local-timestamp-nanos": pa.timestamp("ns"),
    "date": pa.date32(),
}


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


def _as_text(batch: pa.RecordBatch, ids: frozenset[str], row: int) -> pa.Table:
    """Return a piece as columns of `rows.Rows`; one without a text form is null, its type in the metadata."""
    fields: list[pa.Field] = []
    columns: list[pa.Array] = []
    for name, kind, column in zip(batch.schema.names, batch.schema.types, batch.columns, strict=True):
        if name in ids:
            _check_id(name, kind, column, row)
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


def _check_id(name: str, kind: pa.DataType, column: pa.Array, row: int) -> None:
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
        (np.abs(numbers) > _MAX_EXACT_FLOAT) | (np.isfinite(numbers) & (numbers != np.floor(numbers)))
    )
    if len(invalid):
        value, place = numbers[invalid[0]], row + int(invalid[0])
        reason = "above 2^53 the last digits are lost" if abs(value) > _MAX_EXACT_FLOAT else "it has a fraction"
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
        return pa.array([_json(value) for value in column.to_pylist()], pa.string())
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


def _json(value: Any) -> str | None:
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
