"""The files of a table as the log describes them, and how its rows are written: the only place that knows the layout.

`events` of a lake created in format 3 has files of one or more days, whose first and last day are statistics in the
log. Created before, it is partitioned by day, and stays so: the layout is a property of the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from pipelines.lake.files import DAY_COLUMN, write_days, write_file, write_ranges
from pipelines.lake.log_files import table_folder


@dataclass(frozen=True, slots=True)
class File:
    """A file of a table: path in the table's folder, bytes, rows, and its UTC days."""

    path: str
    size: int
    rows: int
    first_day: date | None = None
    """None in tables other than `events`, and in files that other engines wrote without statistics."""
    last_day: date | None = None
    is_partition: bool = False
    """Whether its day is a partition of the table."""
    merge_share: float = 0.0
    """Its share of the limit of one merge, once it is known."""

    @property
    def partition_values(self) -> dict[str, str | None]:
        """The partition that the log has of it; empty in an unpartitioned table."""
        return {DAY_COLUMN: str(self.first_day)} if self.is_partition else {}


def write_rows(table: DeltaTable, rows: pa.Table, name: str, *, data_change: bool = True) -> list[AddAction]:
    """Write rows as durable files of a table, named after `name`, in its layout; return the actions to commit.

    Rows of `events` are without event_day. `data_change` is false where the rows were in the table before. A crash
    leaves files that no commit names; an error leaves none.
    """
    write = write_file
    if DAY_COLUMN in {field.name for field in table.schema().fields}:
        write = write_days if table.metadata().partition_columns else write_ranges
    return write(table_folder(table), rows, name, data_change=data_change)


def list_files(table: DeltaTable) -> list[File]:
    """Return the files of a handle's version by first day, the smallest first within a day."""
    files = [_describe(row) for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()]
    return sorted(files, key=lambda file: (file.first_day or date.min, file.size, file.path))


def _describe(row: Mapping[str, Any]) -> File:
    rows = int(row.get("num_records") or 0)  # missing in files that other engines wrote
    partition = row.get(f"partition.{DAY_COLUMN}")
    days = (partition or row.get(f"{bound}.{DAY_COLUMN}") for bound in ("min", "max"))
    first, last = (None if day is None else date.fromisoformat(str(day)) for day in days)
    return File(str(row["path"]), int(row["size_bytes"]), rows, first, last, is_partition=partition is not None)
