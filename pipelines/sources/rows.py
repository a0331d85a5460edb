"""Files to rows of text, chunk by chunk: CSV, Parquet and NDJSON look alike to what comes after.

Every value becomes text, but for times and dates that already are such; a missing value becomes an empty text. What the
text means is `files.py`'s affair, how each format is read that of `csv_rows.py`, `parquet_rows.py` and `ndjson.py`.
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

pc: Any = compute  # its functions are made at import, where pyright does not see them
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq", ".parq")
_LINES = (".ndjson", ".jsonl", ".json")
_ENDINGS = [*_DELIMITERS, *_PARQUET, *_LINES]
_HINTS = {
    ".xlsx": "save the sheet as CSV UTF-8",
    ".txt": "rename it to .csv, and give --delimiter unless it is a comma",
    **dict.fromkeys((".bz2", ".xz", ".zip", ".gzip"), "unpack it first"),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk: `columns` are strings without nulls, or TIMESTAMP or dates with them where the file holds such."""

    columns: pa.Table
    numbers: pa.Array
    """Of each row in the file: lines for NDJSON, else rows of data; counted from 1."""
    row_word: str
    problems: dict[int, str] = field(default_factory=dict[int, str])
    """By place in the chunk, why a value of a column of ids is none."""

    def text(self, name: str) -> pa.Array:
        """Return a column as text without nulls, timestamps as ISO 8601 in UTC."""
        values = self.columns[name].combine_chunks()
        if pa.types.is_timestamp(values.type):
            return time_text(values)
        return values if values.type == pa.string() else pc.fill_null(values.cast(pa.string()), "")

    def place(self, row: int) -> str:
        """Return where a row of the chunk stands, as part of a sentence."""
        return f"{self.row_word} {self.numbers[row]}"

    def slice(self, start: int) -> "Rows":
        """Return the rows from `start` on."""
        problems = {row - start: problem for row, problem in self.problems.items() if row >= start}
        return Rows(self.columns.slice(start), self.numbers.slice(start), self.row_word, problems)

    def unreadable(self, name: str) -> str | None:
        """Return the type of a column that has no text, else None."""
        found: bytes | None = (self.columns.schema.field(name).metadata or {}).get(b"unreadable")
        return found.decode() if found else None

    def with_paths(self, names: Collection[str]) -> "Rows":
        """Return the rows with a column for each dotted name that is none: a member of the objects of a column."""
        columns = self.columns
        for name in dict.fromkeys(names):
            parent = next((it for it in columns.column_names if name.startswith(f"{it}.")), None)
            if parent is not None and name not in columns.column_names:
                steps = name.removeprefix(f"{parent}.").split(".")
                members = [_member(text, steps) for text in self.text(parent).to_pylist()]
                columns = columns.append_column(name, pa.array(members, pa.string()))
        return Rows(columns, self.numbers, self.row_word, self.problems)


def read_rows(path: Path, delimiter: str | None = None, ids: Collection[str] = ()) -> Iterator[Rows]:
    """Yield the rows of a CSV, Parquet or NDJSON file, by its ending; text may be .gz or .zst.

    `ids` are the columns that hold ids. Raises UsageError naming the file and the place for a file that is missing,
    unknown, malformed or beyond the bounds of `bounds.py`.
    """
    ending = _ending(path)
    try:
        if ending in _LINES:
            for chunk in read_ndjson(path, ids):
                yield Rows(chunk.columns, chunk.numbers, "line", chunk.problems)
            return
        tables = read_parquet(path, ids) if ending in _PARQUET else read_csv(path, delimiter or _DELIMITERS[ending])
        for row, table in tables:
            yield Rows(table, pa.array(np.arange(row, row + len(table))), "row")
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None


def count_rows(path: Path, delimiter: str | None = None) -> int:
    """Return how many rows a file has: a Parquet file says so itself, any other is read. Raises like `read_rows`."""
    if _ending(path) in _PARQUET:
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None
    return sum(len(rows.columns) for rows in read_rows(path, delimiter))


def _ending(path: Path) -> str:
    """Return what kind of file it is, or refuse it."""
    endings = [ending.lower() for ending in path.suffixes]
    ending = endings[-2] if len(endings) > 1 and endings[-1] in {".gz", ".zst"} else "".join(endings[-1:])
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name its files; a column that only folders' names hold is not read")
    if ending not in _ENDINGS:
        hint = _HINTS.get(ending, "convert it to Parquet first")
        raise UsageError(f"{path}: the ending is none of {', '.join(_ENDINGS)} (text also with .gz or .zst); {hint}")
    return ending


def _member(text: str, steps: list[str]) -> str:
    """Return a member of an object in JSON as text; empty where it is not."""
    try:
        value: Any = json.loads(text, parse_int=str, parse_float=str, parse_constant=str) if text else None
    except ValueError:
        return ""
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)
