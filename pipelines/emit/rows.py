"""Files to rows of text, chunk by chunk: CSV, Parquet and NDJSON look alike to what comes after.

Every value becomes text, but for times that already are times; a missing value becomes an empty text. What the text
means is `files.py`'s affair.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute, csv

from pipelines.contract.schema import TIMESTAMP
from pipelines.emit.ndjson import read_ndjson
from pipelines.errors import UsageError

pc: Any = compute  # its functions are made at import, where pyright does not see them
_CHUNK_ROWS = 65_536
_CSV_BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk: `columns` are strings without nulls, or TIMESTAMP with them where the file holds timestamps or dates."""

    columns: pa.Table
    first_row: int
    """Number of its first row in the file: lines for NDJSON, else rows of data; counted from 1."""
    row_word: str

    def text(self, name: str) -> pa.Array:
        """Return a column as text without nulls, timestamps as ISO 8601 in UTC."""
        values = self.columns[name].combine_chunks()
        if not pa.types.is_timestamp(values.type):
            return values
        return pc.fill_null(pc.strftime(values, format="%Y-%m-%dT%H:%M:%SZ"), "")


def read_rows(path: Path) -> Iterator[Rows]:
    """Yield the rows of a file by its ending: .csv, .parquet, .ndjson or .jsonl; text may be compressed (.gz, .zst).

    Raises UsageError naming the file and the place for a file that is missing, unknown or malformed.
    """
    endings = [ending.lower() for ending in path.suffixes]
    ending = endings[-2] if len(endings) > 1 and endings[-1] in {".gz", ".zst"} else "".join(endings[-1:])
    if ending not in _READERS:
        raise UsageError(f"{path}: the ending is none of {', '.join(_READERS)} (text also with .gz or .zst)")
    try:
        yield from _READERS[ending](path)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None


def count_rows(path: Path) -> int:
    """Return how many rows a file has: a Parquet file says so itself, any other is read. Raises like `read_rows`."""
    if path.suffix.lower() == ".parquet":
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None
    return sum(len(rows.columns) for rows in read_rows(path))


def _read_csv(path: Path) -> Iterator[Rows]:
    parse = csv.ParseOptions(newlines_in_values=True)
    read = csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES)
    with pa.input_stream(str(path)) as stream:
        header = csv.open_csv(stream, read_options=read, parse_options=parse)
        names = _unique(header.schema.names, path)
        header.close()
    text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    row = 1
    with (
        pa.input_stream(str(path)) as stream,
        csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=text) as batches,
    ):
        for batch in batches:
            yield Rows(pa.table(batch), row, "row")
            row += len(batch)


def _read_parquet(path: Path) -> Iterator[Rows]:
    row = 1
    with pq.ParquetFile(path) as file:
        names = _unique(file.schema_arrow.names, path)
        for batch in file.iter_batches(_CHUNK_ROWS):
            yield Rows(pa.table([_plain(column) for column in batch.columns], names), row, "row")
            row += len(batch)


def _read_ndjson(path: Path) -> Iterator[Rows]:
    for number, columns in read_ndjson(path):
        yield Rows(columns, number, "line")


def _plain(column: pa.Array) -> pa.Array:
    """Return a Parquet column as text, floats as the shortest digits that mean them; times as TIMESTAMP."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz), safe=False).cast(TIMESTAMP)
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).cast(TIMESTAMP)
    if pa.types.is_floating(kind):
        text = pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = column.to_pylist()
        text = pa.array(
            [None if value is None else json.dumps(value, default=_as_text) for value in values], pa.string()
        )
    else:
        text = column.cast(pa.string())
    return pc.fill_null(text, "")


def _as_text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _unique(names: list[str], path: Path) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{path}: several columns are called {twice[0]!r}: rename one")
    return names


_READERS: Mapping[str, Callable[[Path], Iterator[Rows]]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".ndjson": _read_ndjson,
    ".jsonl": _read_ndjson,
}
