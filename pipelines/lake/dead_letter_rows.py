"""Rows of the files of `dead_letters`, in parts: a record may take 128 MiB, and a file holds many.

A part is of one row group, at most 8 MiB where rows are of similar size; the writer keeps the row groups of this table
at 16 MiB, or one row (`files.py`). So one part is at most 16 MiB or one record, in files of this release.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.files import conform, open_file, with_plain_types
from pipelines.lake.tables import TABLES

_SCHEMA = TABLES["dead_letters"]
_CHUNK_BYTES = 8 * 1024 * 1024
_MAX_ROWS = 256
"""Dead letters in memory at a time; fewer if they are large."""
_CELL_BYTES = 16
"""The overhead of a cell or a header, in addition to its own bytes."""


class RowGroup(NamedTuple):
    """A row group of a file, by its number."""

    file: str
    number: int


def row_groups(path: str) -> list[RowGroup]:
    """Return all row groups of a file."""
    with open_file(path) as file:
        return [RowGroup(path, number) for number in range(file.num_row_groups)]


def batches_by_row_group(path: str) -> dict[RowGroup, set[str]]:
    """Return the batch_ids in each row group of a file."""
    with open_file(path) as file:
        return {RowGroup(path, number): _batch_ids(file, number) for number in range(file.num_row_groups)}


def read_dead_letter_rows(
    group: RowGroup, wanted: Collection[str], columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of batches in a row group, in parts; all columns, or these and `batch_id`."""
    names = [*columns, "batch_id"] if columns else _SCHEMA.names
    schema, batch_ids = pa.schema(_SCHEMA.field(name) for name in names), pa.array(wanted, pa.string())
    with open_file(group.file) as file:
        stored = file.metadata.row_group(group.number)
        cells = sum(stored.column(number).num_values for number in range(stored.num_columns))
        size = stored.total_byte_size + cells * _CELL_BYTES
        rows = max(1, min(_MAX_ROWS, _CHUNK_BYTES * stored.num_rows // max(1, size)))
        for batch in file.iter_batches(rows, [group.number], columns and names):
            found = conform(with_plain_types(pa.table(batch)), schema)
            is_wanted = pc.is_in(found["batch_id"], value_set=batch_ids)
            yield found if pc.all(is_wanted).as_py() else found.filter(is_wanted)  # a copy of large values, avoided


def _batch_ids(file: Any, row_group: int) -> set[str]:
    return set(pc.unique(file.read_row_group(row_group, ["batch_id"])["batch_id"]).to_pylist())
