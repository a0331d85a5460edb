"""Files as rows of text, chunk by chunk, in one shape for CSV, Parquet and NDJSON.

Every value becomes text, except typed times and dates; a missing value becomes an empty string. `files.py` interprets
the text; `csv_rows.py`, `parquet_rows.py` and `ndjson.py` read the formats.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from pipelines.errors import UsageError
from pipelines.sources.canonical import time_text
from pipelines.sources.csv_rows import read_csv
from pipelines.sources.ndjson import read_ndjson
from pipelines.sources.parquet_rows import read_parquet

pc: Any = compute  # its functions are generated at import, invisible to pyright
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq", ".parq")
_NDJSON = (".ndjson", ".jsonl", ".json")
_EXTENSIONS = [*_DELIMITERS, *_PARQUET, *_NDJSON]
_HINTS = {
    ".xlsx": "save the sheet as CSV UTF-8",
    ".txt": "rename it to .csv, and give --delimiter unless it is a comma",
    **dict.fromkeys((".bz2", ".xz", ".zip", ".gzip"), "unpack it first"),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk: `columns` are strings without nulls, or TIMESTAMP or dates, with nulls, if the file has those types."""

    columns: pa.Table
    numbers: pa.Array
    """Position of each row in the file, from 1: lines for NDJSON, otherwise data rows."""
    row_label: str
    """What `numbers` count: "row" or "line"."""
    problems: dict[int, str] = field(default_factory=dict[int, str])
    """By index in the chunk, the problem of an invalid value in an id column."""

    def text(self, name: str) -> pa.Array:
        """Return a column as text without nulls, timestamps as ISO 8601 in UTC."""
        values = self.columns[name].combine_chunks()
        if pa.types.is_timestamp(values.type):
            return time_text(values)
        return values if values.type == pa.string() else pc.fill_null(values.cast(pa.string()), "")

    def place(self, row: int) -> str:
        """Return the position of a row in the file for a message: 'row 7'."""
        return f"{self.row_label} {self.numbers[row]}"

    def slice(self, start: int) -> "Rows":
        """Return the rows from `start` on."""
        problems = {row - start: problem for row, problem in self.problems.items() if row >= start}
        return Rows(self.columns.slice(start), self.numbers.slice(start), self.row_label, problems)

    def unreadable(self, name: str) -> str | None:
        """Return the type of a column without a text form, else None."""
        found: bytes | None = (self.columns.schema.field(name).metadata or {}).get(b"unreadable")
        return found.decode() if found else None

    def with_nested_columns(self, names: Collection[str]) -> "Rows":
        """Return the rows with an added column for each dotted name: a member of the objects in a column."""
        columns = self.columns
        for name in dict.fromkeys(names):
            parent = next((it for it in columns.column_names if name.startswith(f"{it}.")), None)
            if parent is not None and name not in columns.column_names:
                path = name.removeprefix(f"{parent}.").split(".")
                members = [_member(text, path) for text in self.text(parent).to_pylist()]
                columns = columns.append_column(name, pa.array(members, pa.string()))
        return Rows(columns, self.numbers, self.row_label, self.problems)


def read_rows(path: Path, delimiter: str | None = None, ids: Collection[str] = ()) -> Iterator[Rows]:
    """Yield the rows of a CSV, Parquet or NDJSON file, by its extension; text may be .gz or .zst.

    `ids` are the columns that hold ids. Raises UsageError naming file and row for a file that is missing, unsupported,
    malformed or exceeds a limit of `bounds.py`.
    """
    extension = _extension(path)
    try:
        if extension in _NDJSON:
            for chunk in read_ndjson(path, ids):
                yield Rows(chunk.columns, chunk.numbers, "line", chunk.problems)
            return
        tables = (
            read_parquet(path, ids) if extension in _PARQUET else read_csv(path, delimiter or _DELIMITERS[extension])
        )
        for row, table in tables:
            yield Rows(table, pa.array(np.arange(row, row + len(table))), "row")
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None


def count_rows(path: Path, delimiter: str | None = None) -> int:
    """Return the number of rows; read the whole file unless it is Parquet. Raises like `read_rows`."""
    if _extension(path) in _PARQUET:
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None
    return sum(len(rows.columns) for rows in read_rows(path, delimiter))


def _extension(path: Path) -> str:
    """Return the extension without compression. Raises UsageError if it is not supported."""
    suffixes = [extension.lower() for extension in path.suffixes]
    extension = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in {".gz", ".zst"} else "".join(suffixes[-1:])
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give its files; columns in folder names (Hive partitions) are not read")
    if extension not in _EXTENSIONS:
        hint = _HINTS.get(extension, "convert it to Parquet first")
        raise UsageError(
            f"{path}: the extension is not one of {', '.join(_EXTENSIONS)} (text also with .gz or .zst); {hint}"
        )
    return extension


def _member(text: str, path: list[str]) -> str:
    """Return a member of a JSON object as text, empty if it is missing."""
    try:
        value: Any = json.loads(text, parse_int=str, parse_float=str, parse_constant=str) if text else None
    except (ValueError, RecursionError):
        return ""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)
