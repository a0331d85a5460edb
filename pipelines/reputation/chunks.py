"""Rows in Arrow's file format, in memory or mapped from a file, read by their numbers. Written once.

Rows of few users are on pages far apart, and memory may hold a part of the file only: read-ahead would then load
megabytes for each row and replace pages that are needed, and one page after another is slow. So a file is read without
read-ahead, many pages at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.lake.mapping import Mapped, advise_random, map_file
from pipelines.lake.threads import kept_threads

CHUNK_ROWS = 65_536
_THREADS = 16
_readers = kept_threads(_THREADS, "rows")
_FEW_CHUNKS = 64
"""So many chunks are read here: handing them over costs more than it may save."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """Rows in chunks."""

    schema: pa.Schema
    batches: tuple[pa.RecordBatch, ...]
    starts: np.ndarray
    """The row at which each chunk starts, and the number of rows: int64, shape (chunks + 1,)."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns, or all, of rows (int64, ascending)."""
        names = self.schema.names if columns is None else list(columns)
        bounds = np.searchsorted(rows, self.starts)

        def take_from(chunks: np.ndarray) -> list[pa.RecordBatch]:
            return [
                self.batches[n].select(names).take(pa.array(rows[bounds[n] : bounds[n + 1]] - self.starts[n]))
                for n in chunks.tolist()
            ]

        touched = np.flatnonzero(np.diff(bounds))
        if len(touched) <= _FEW_CHUNKS:
            taken = take_from(touched)
        else:
            parts = _readers().map(take_from, np.array_split(touched, _THREADS))
            taken = [*chain.from_iterable(parts)]
        return pa.Table.from_batches(taken, pa.schema([self.schema.field(name) for name in names]))

    def column(self, name: str) -> np.ndarray:
        """Return all values of a column without nulls."""
        empty = np.empty(0, self.schema.field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *(chunk.column(name).to_numpy() for chunk in self.batches)])


def store_chunks(path: Path | None, schema: pa.Schema, rows: Iterable[pa.RecordBatch]) -> Chunks:
    """Return rows, in the file at a path or (None) in memory. The file is not durable.

    Memory holds one chunk at a time if they are in a file. Raises OSError when the disk is full.
    """
    if path is None:
        return _chunks(schema, rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for chunk in rows:
            writer.write_batch(chunk)
    return map_chunks(path)


def map_chunks(path: Path, advise: Callable[[Mapped], None] = advise_random) -> Chunks:
    """Map the rows of a file. Raises OSError or ValueError if it is missing or damaged.

    advise: of `mapping.py`; how the rows will be read.
    """
    mapped = map_file(path)
    advise(mapped)
    reader = pa.ipc.open_file(pa.py_buffer(mapped))
    return _chunks(reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches)))


def _chunks(schema: pa.Schema, rows: Iterable[pa.RecordBatch]) -> Chunks:
    kept = tuple(chunk for chunk in rows if chunk.num_rows)
    return Chunks(schema, kept, np.cumsum([0, *(chunk.num_rows for chunk in kept)]))


def in_chunks(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table."""
    yield from rows.combine_chunks().to_batches(CHUNK_ROWS)
