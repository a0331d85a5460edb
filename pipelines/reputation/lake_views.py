"""The lake as DuckDB views over the files of one snapshot, so that readers see exactly that commit.

Owns which rows count: of dead letters and conflicts, those of committed batches. They count by their batch, not by
their place: a record may be judged differently after a crash, and a log that lost its end repeats its offsets. The
place of a conflict's first event is looked up here, by a join, so that ingest never scans history for a bad record.
The SQL is `sql/lake_views.sql`.
"""

from collections.abc import Generator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from pipelines.boundary.database import connect
from pipelines.boundary.locked_sql import literal
from pipelines.lake.checkpoints import checkpoints
from pipelines.lake.stores import is_remote, register_s3
from pipelines.lake.tables import TABLES, Snapshot
from pipelines.reputation.sql import arrow_rows, statement

CHECKPOINTS = pa.schema([("topic_id", pa.string()), ("topic_partition", pa.int32()), ("next_offset", pa.int64())])
LAKE_VIEWS = (
    "events",
    "commits",
    "withdrawn",
    "fates",
    "dead_letters",
    "conflicts",
    "erased",
    "policies",
    "merged_users",
    "score_changes",
)
"""The views of the lake's tables, and of what withdrawals removed; each reads only earlier ones."""
_NOT_STORED = {"event_day"}
_READ_AS = {"bus_time": statement("valid_bus_time")}
"""Expressions of columns that are not read as they are stored."""


def create_lake_views(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    """Create the table `checkpoints` and a view of each table of the lake."""
    with arrow_rows(connection, _checkpoints(snapshot)):
        connection.execute(statement("table_checkpoints"))
    for table in LAKE_VIEWS:
        source = stored_rows(connection, table, snapshot) if table in TABLES else ""
        connection.execute(statement(f"view_{table}", source=source, version=str(snapshot.version)))


@contextmanager
def open_lake_views(snapshot: Snapshot) -> Generator[duckdb.DuckDBPyConnection]:
    """Yield a new connection with what `create_lake_views` creates, in memory."""
    with connect() as connection:
        create_lake_views(connection, snapshot)
        yield connection


def _checkpoints(snapshot: Snapshot) -> pa.Table:
    rows = [
        {"topic_id": topic_id, "topic_partition": topic_partition, "next_offset": next_offset}
        for (topic_id, topic_partition), next_offset in sorted(checkpoints(snapshot.transactions).items())
    ]
    return pa.Table.from_pylist(rows, CHECKPOINTS)


def stored_rows(connection: duckdb.DuckDBPyConnection, table: str, snapshot: Snapshot) -> str:
    """Return a query of the rows of one of the lake's tables; without files, of no rows with its columns.

    Columns and nested fields that an older release did not write are null. Only then are the columns of every file
    compared, which takes a read of each.
    """
    files = snapshot.files.get(table, ())
    stored = pa.schema([field for field in TABLES[table] if field.name not in _NOT_STORED])
    if files:
        if is_remote(files[0]):
            register_s3(connection)
        columns = ", ".join(_READ_AS.get(name, f'"{name}"') for name in stored.names)
        paths = ", ".join(map(literal, files))
        if table not in snapshot.mixed:
            return statement("stored_rows", columns=columns, paths=paths)
        return statement("mixed_rows", columns=columns, paths=paths, no_rows=_no_rows(connection, stored))
    return _no_rows(connection, stored)


def _no_rows(connection: duckdb.DuckDBPyConnection, stored: pa.Schema) -> str:
    empty = connection.from_arrow(stored.empty_table())
    typed = (f'CAST(NULL AS {kind}) AS "{name}"' for name, kind in zip(empty.columns, empty.types, strict=True))
    return statement("no_rows", columns=", ".join(typed))
