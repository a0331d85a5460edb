"""Rows in Arrow's file format, in memory or mapped from a file, read by their numbers. Written once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

CHUNK_ROWS = 65_536


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
        taken = [
            chunk.select(names).take(pa.array(rows[low:high] - start))
            for chunk, start, low, high in zip(self.batches, self.starts, bounds, bounds[1:], strict=False)
            if low < high
        ]
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


def map_chunks(path: Path) -> Chunks:
    """Map the rows of a file. Raises OSError or ValueError if it is missing or damaged."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return _chunks(reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches)))


def _chunks(schema: pa.Schema, rows: Iterable[pa.RecordBatch]) -> Chunks:
    kept = tuple(chunk for chunk in rows if chunk.num_rows)
    return Chunks(schema, kept, np.cumsum([0, *(chunk.num_rows for chunk in kept)]))


def in_chunks(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table."""
    yield from rows.combine_chunks().to_batches(CHUNK_ROWS)
