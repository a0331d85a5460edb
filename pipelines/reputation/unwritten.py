"""What a draft's file lacks at one moment, and writing it: in a thread of its own, while refreshes continue.

Refreshes change nothing in the file, so what is written in that thread is of exactly one moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.formats import WAREHOUSE
from pipelines.reputation.database_file import transaction
from pipelines.reputation.day_sums import update_trends
from pipelines.reputation.refresh_steps import Counts
from pipelines.reputation.sql import arrow_rows, one_row, statement
from pipelines.reputation.steps import epoch_us
from pipelines.reputation.user_rows import Columns, StoredRows, table_form
from pipelines.reputation.warehouse_file import Info
from pipelines.reputation.warehouse_tables import TABLES_BY_DAY, views_of_sums


@dataclass(frozen=True, slots=True)
class Unwritten:
    """The rows, counts and moment that a draft's file lacks. Nothing of it changes, so any thread may write it."""

    info: Info
    counts: Counts
    users: pl.Series
    """The user_ids (String) of the users whose rows it lacks, with repeats."""
    written: StoredRows | None
    """The rows of all users as the file has them, trends included; None if no user changed."""
    rows: StoredRows | None
    """The rows of all users; None if no user changed."""
    columns: Mapping[str, Columns]

    def write(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Write all of it."""
        with transaction(connection):
            if self.written is not None and self.rows is not None and len(self.users):
                self._write_rows(connection, self.written, self.rows)
            connection.execute(statement("base_update_counts"), [*self.counts])
            write_info(connection, self.info)

    def _write_rows(self, connection: duckdb.DuckDBPyConnection, written: StoredRows, rows: StoredRows) -> None:
        with arrow_rows(connection, self.users.to_frame("user_id").to_arrow()):
            connection.execute(statement("base_pending_users"))
        users = connection.execute(statement("base_pending_hashes")).fetchnumpy()["user_hash"]
        users.sort()
        by_day = dict[str, pa.Table]()
        for name, columns in self.columns.items():
            of_users = rows.rows_of(name, users)
            connection.execute(statement("base_delete_rows", name=name))
            with arrow_rows(connection, of_users):
                connection.execute(statement("base_insert_rows", name=name, columns=table_form(columns)))
            if name in TABLES_BY_DAY:
                by_day[name] = of_users
        connection.execute(statement("base_insert_users"))
        before = {name: written.rows_of(name, users) for name in TABLES_BY_DAY}
        update_trends(connection, self.info.policy.at(self.info.as_of), self.columns, before, by_day)


def write_info(connection: duckdb.DuckDBPyConnection, info: Info) -> None:
    """Write the row of `snapshot_info`, and the views over sums, some of which depend on its moment."""
    connection.execute(statement("table_snapshot_info"))
    values = [
        info.lake_version,
        epoch_us(info.as_of),
        info.policy.name,
        info.policy_version,
        info.policy.to_json(),
        epoch_us(info.derived_at),
        info.karmalake_version,
        info.recipe,
        info.last_batch,
        WAREHOUSE.number,
        info.decayed_to,
        info.erasures,
        info.merges,
    ]
    connection.execute(statement("insert_snapshot_info"), values)
    for name, query in views_of_sums(info.policy.at(info.as_of)).items():
        connection.execute(statement("create_view", name=name, query=query))


def changed_share(connection: duckdb.DuckDBPyConnection) -> float:
    """Return the share of the users of a warehouse whose rows in its base are superseded, as far as written."""
    changed, users = one_row(connection.execute(statement("base_changed_share")))
    return changed / max(1, users)
