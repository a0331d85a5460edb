"""Files as rows of text, chunk by chunk, in one shape for every format.

Every value becomes text, except typed dates and times, with or without a zone; a missing value becomes an empty
string. `files.py` interprets the text; `csv_rows.py`, `ndjson.py` and `table_rows.py` read the formats.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from pipelines.contract.schema import TIMESTAMP
from pipelines.errors import UsageError
from pipelines.sources.canonical import time_text
from pipelines.sources.csv_rows import csv_dialect, read_csv
from pipelines.sources.ndjson import read_json
from pipelines.sources.nested import UnclearError, parse_json, to_json
from pipelines.sources.options import ReadOptions
from pipelines.sources.streams import COMPRESSIONS, TextStream, first_bytes, spooled
from pipelines.sources.table_rows import read_table

pc: Any = compute  # its functions are generated at import, invisible to pyright
_EXTENSIONS = {
    "csv": (".csv", ".tsv", ".tab"),
    "json": (".ndjson", ".jsonl", ".json"),
    "parquet": (".parquet", ".pq", ".parq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "orc": (".orc",),
    "avro": (".avro",),
    "xlsx": (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"),
}
_FORMATS = {extension: form for form, extensions in _EXTENSIONS.items() for extension in extensions}
_MAGIC = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"ORC": "orc",
    b"Obj\x01": "avro",
    b"\xff\xff\xff\xff": "arrow",
    b"SQLite format 3": "sqlite",
    b"<?xml": "xml",
    b"%PDF-": "pdf",
    **dict.fromkeys((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd"), "twice"),
    b"7z\xbc\xaf'\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b'\x04"M\x18': "lz4",
    b"]\0\0": "lzma",
    b"\x1f\x9d": "compress",
    b"\xff\x06\x00\x00sNaPpY": "snappy",
}
"""How files begin, decompressed, whose name says no format."""
_OLE, _ZIP, _ODS = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PK\x03\x04", b"application/vnd.oasis.opendocument.spreadsheet"
_TAR, _TAR_AT = b"ustar", 257
"""What a tar archive has in the header of its first file, and where."""
_ARCHIVE = "is an archive, perhaps of several files: unpack it, and give its files"
_COMPRESSED = "is compressed in a way that is not read: decompress it, or use gzip, zstd, bzip2 or xz"
_NOT_READ = {
    "sqlite": "is a database: export the table as CSV or Parquet",
    "pdf": "is a PDF document: export the table as CSV",
    "twice": "is compressed twice: decompress it once",
    **dict.fromkeys(("tar", "7z", "rar"), _ARCHIVE),
    **dict.fromkeys(("lz4", "lzma", "compress", "snappy"), _COMPRESSED),
    "xml": "is XML: write its rows as JSON, one object a line; the attributes of an element are its fields",
}
_PLAIN = ReadOptions()
_NAIVE = pa.timestamp("us")
_DECIMAL_COMMA = r"^(-?[0-9]+),([0-9]+)$"
_GROUPED = r"^-?[0-9]{1,3}(?:\.[0-9]{3})+"
"""Of thousands; a comma and decimals may follow."""
_HIVE = re.compile(r"([^/=]+)=([^/]*)")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk of a file.

    `columns` are strings without nulls, or, if the file has those types, with nulls: TIMESTAMP, dates, and times in
    microseconds without a zone. Which moments those are is decided by `times.zoned_times` alone.
    """

    columns: pa.Table
    numbers: pa.Array
    """Of each row in the file, from 1; headers and blank lines do not count."""
    problems: dict[int, str] = field(default_factory=dict[int, str])
    """By index in the chunk, the problem of an invalid value in an id column, or of an object with a member twice."""

    def text(self, name: str) -> pa.Array:
        """Return a column as text without nulls, times as ISO 8601, in UTC or without a zone."""
        values = self.columns[name].combine_chunks()
        if pa.types.is_timestamp(values.type):
            return time_text(values)
        return values if values.type == pa.string() else pc.fill_null(values.cast(pa.string()), "")

    def in_utc(self) -> "Rows":
        """Return the rows with the zone UTC for times without one: what they mean if no zone is given."""
        fields = [each.with_type(TIMESTAMP) if each.type == _NAIVE else each for each in self.columns.schema]
        return replace(self, columns=self.columns.cast(pa.schema(fields)))

    def place(self, row: int) -> str:
        """Return the position of a row in the file for a message: 'row 7'."""
        return f"row {self.numbers[row]}"

    def slice(self, start: int) -> "Rows":
        """Return the rows from `start` on."""
        problems = {row - start: problem for row, problem in self.problems.items() if row >= start}
        return Rows(self.columns.slice(start), self.numbers.slice(start), problems)

    def unreadable(self, name: str) -> str | None:
        """Return the type of a column without a text form, else None."""
        found: bytes | None = (self.columns.schema.field(name).metadata or {}).get(b"unreadable")
        return found.decode() if found else None

    def with_nested_columns(self, names: Collection[str]) -> "Rows":
        """Return the rows with an added column for each dotted name: a member of the objects in a column."""
        columns, problems = self.columns, dict(self.problems)
        for name in dict.fromkeys(names):
            parent = next((it for it in columns.column_names if name.startswith(f"{it}.")), None)
            if parent is not None and name not in columns.column_names:
                path = name.removeprefix(f"{parent}.").split(".")
                members = [""] * len(columns)
                for row, text in enumerate(self.text(parent).to_pylist()):
                    try:
                        members[row] = _member(text, path)
                    except UnclearError as error:
                        problems[row] = f"column {parent!r} {error}"
                columns = columns.append_column(name, pa.array(members, pa.string()))
        return Rows(columns, self.numbers, problems)


def read_rows(
    path: Path, options: ReadOptions = _PLAIN, ids: Collection[str] = (), names: Collection[str] = (), shown: str = ""
) -> Iterator[Rows]:
    """Yield the rows of a file in any format; text may be compressed.

    `ids` are the columns that hold ids, `names` all that are mapped. `shown` is the address of a file that was copied
    here: `key=value` folders in it are columns. Raises UsageError naming file and row for a file that is missing,
    unsupported, malformed or exceeds a limit of `bounds.py`.
    """
    try:
        form = file_format(path, options, shown)
        hive = _hive_columns(shown or str(path.absolute()))
        for rows in _read(path, form, options, ids, [name for name in names if name not in hive]):
            yield _without_nulls(_with_constants(rows, hive), options)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {(str(error).splitlines() or [repr(error)])[0]}") from None


def _read(path: Path, form: str, options: ReadOptions, ids: Collection[str], names: Collection[str]) -> Iterator[Rows]:
    if form == "json":
        for chunk in read_json(path, options.encoding, ids):
            yield Rows(chunk.columns, chunk.numbers, chunk.problems)
    elif form == "csv":
        dialect = csv_dialect(path, options, _extension(path), names)
        for row, table in read_csv(path, dialect):
            changed = _with_decimal_points(table, ids, dialect.comma_columns) if dialect.decimal_comma else table
            yield Rows(changed, pa.array(np.arange(row, row + len(table))))
    else:
        with nullcontext(path) if form == "xlsx" else spooled(path, "utf-8") as plain:
            for row, table in read_table(plain, form, ids, names):
                yield Rows(table, pa.array(np.arange(row, row + len(table))))


def describe(path: Path, options: ReadOptions = _PLAIN, names: Collection[str] = (), shown: str = "") -> str:
    """Describe what was found about the form of a file and is not the usual; empty if nothing is. Raises UsageError."""
    form = file_format(path, options, shown)
    if form != "csv":
        said = "" if _FORMATS.get(_extension(Path(shown or path))) == form else f"format {form}"
        return ", ".join(filter(None, [said, _sheets(path, options, names, shown) if form == "xlsx" else ""]))
    return str(csv_dialect(path, options, _extension(path), names))


def _sheets(path: Path, options: ReadOptions, names: Collection[str], shown: str) -> str:
    """Return which sheets of a workbook are read; empty if there is only one."""
    first = next(read_rows(path, options, (), names, shown))
    return (first.columns.schema.metadata or {}).get(b"note", b"").decode()


def count_rows(path: Path, options: ReadOptions = _PLAIN, names: Collection[str] = (), shown: str = "") -> int:
    """Return the number of rows; read the whole file unless it is Parquet. Raises like `read_rows`."""
    if file_format(path, options, shown) == "parquet":
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None
    return sum(len(rows.columns) for rows in read_rows(path, options, (), names, shown))


def file_format(path: Path, options: ReadOptions = _PLAIN, shown: str = "") -> str:
    """Return the format of a file: the option, what its name says, or what it begins with.

    Raises UsageError for a missing file, and for one that is not read, also if its name says that it is text.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such file")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give its files")
    named = options.format or ("xlsx" if _is_workbook(path) else _FORMATS.get(_extension(Path(shown or path))))
    found = named or _format_of(path)
    if named in {"csv", "json"} and not options.format and (begun := _format_of(path)) in _NOT_READ:
        found = begun
    if found in _NOT_READ:
        raise UsageError(f"{path}: {_NOT_READ[found]}")
    return found


def _extension(path: Path) -> str:
    """Return the extension in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in {*COMPRESSIONS, ".gzip"}:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_workbook(path: Path) -> bool:
    """Return whether a file begins like a workbook, whatever its name: text is never stored so."""
    start = first_bytes(path, 4096)
    return start.startswith(_OLE) or (start.startswith(_ZIP) and (b"xl/" in start or _ODS in start))


def _format_of(path: Path) -> str:
    """Return the format that the first bytes of a file show; text that is not JSON is CSV."""
    with TextStream(path, "utf-8") as stream:
        start = stream.sample
    if start[_TAR_AT:].startswith(_TAR):
        return "tar"
    found = next((form for magic, form in _MAGIC.items() if start.removeprefix(BOM_UTF8).startswith(magic)), None)
    return found or ("json" if start[:100].lstrip()[:1] in {b"{", b"["} else "csv")


def _with_decimal_points(table: pa.Table, ids: Collection[str], comma_columns: Collection[int]) -> pa.Table:
    """Return a table with plain numbers for those with decimal commas, and for grouped ones in `comma_columns`."""
    columns = [
        column if name in ids else _plain_numbers(column, "(?:,[0-9]+)?$" if place in comma_columns else ",[0-9]+$")
        for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True))
    ]
    return pa.table(columns, table.column_names)


def _plain_numbers(texts: pa.ChunkedArray, after_groups: str) -> pa.ChunkedArray:
    grouped = pc.match_substring_regex(texts, _GROUPED + after_groups)
    texts = pc.if_else(grouped, pc.replace_substring(texts, ".", ""), texts)
    return pc.replace_substring_regex(texts, _DECIMAL_COMMA, r"\1.\2")


def _hive_columns(path: str) -> dict[str, str]:
    """Return the columns that folders named `key=value` add, as Hive and Spark write them."""
    found = (_HIVE.fullmatch(part) for part in path.split("/")[:-1])
    pairs = {unquote(match[1]): unquote(match[2]) for match in found if match}
    return {name: "" if value == _HIVE_NULL else value for name, value in pairs.items()}


def _with_constants(rows: Rows, constants: dict[str, str]) -> Rows:
    columns = rows.columns
    for name, value in constants.items():
        if name not in columns.column_names:
            columns = columns.append_column(name, pa.repeat(pa.scalar(value), len(columns)))
    return replace(rows, columns=columns)


def _without_nulls(rows: Rows, options: ReadOptions) -> Rows:
    """Return rows with an empty text for each that stands for no value."""
    if not options.null:
        return rows
    markers = pa.array(options.null)
    columns = rows.columns
    for number, field_ in enumerate(columns.schema):
        if field_.type == pa.string():
            texts = columns.column(number)
            columns = columns.set_column(number, field_, pc.if_else(pc.is_in(texts, markers), "", texts))
    return replace(rows, columns=columns)


def _member(text: str, path: list[str]) -> str:
    """Return a member of a JSON object as text, empty if it is missing. Raises UnclearError."""
    try:
        value: Any = parse_json(text) if text else None
    except UnclearError:
        raise
    except ValueError:
        return ""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, str):
        return value
    return "" if value is None else to_json(value)
