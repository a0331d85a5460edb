"""The tables of a draft: its base, what changed since, and the rows by user that a refresh compares with.

A refresh replaces rows of users in memory; `write_changes` writes them to the draft's file, for a publication, and
before it whenever there are many, so that a publication never holds up refreshes for long. After a crash the published
file has everything up to that publication, and the events do.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.boundary.locked_sql import literal
from pipelines.reputation.base import divided_tables, replace_changes
from pipelines.reputation.database_file import transaction
from pipelines.reputation.documents import SHOWN, documents_of, shown_rows, shown_users
from pipelines.reputation.recent_events import RecentEvents, recent_in_warehouse
from pipelines.reputation.refresh_steps import Counts, Replaced, load_stored
from pipelines.reputation.scopes import scope_query, scope_table
from pipelines.reputation.sql import arrow_rows, one_row, statement
from pipelines.reputation.user_rows import (
    Columns,
    Rows,
    UserRows,
    columns_of,
    open_base_rows,
    read_rows,
    stored_form,
    table_form,
    write_base_rows,
)
from pipelines.reputation.views import reputation_query
from pipelines.reputation.warehouse_file import stored_info
from pipelines.reputation.warehouse_tables import SUMS

_MAX_UNWRITTEN_USERS = 25_000
"""Writing the rows of this many takes about 0.2 s."""


class DraftTables:
    """The tables of a draft, over a connection to its file. Not thread-safe."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, base: Path) -> None:
        self.connection, self.base, self.info = connection, base, stored_info(connection)
        self.counts = Counts(*one_row(connection.execute(statement("base_read_counts"))))
        self.recent_events: RecentEvents = partial(recent_in_warehouse, connection, self.info)
        """Returns what happened to users until as_of; the draft replaces it when it is rebuilt or refreshed."""
        self._unwritten_users = 0  # at most: a user who changes twice counts twice
        self._columns = {name: columns_of(connection, name) for name in divided_tables(connection)}
        connection.execute(statement("base_pending_users"))
        connection.execute(statement("base_newer_users"))

    def replace(self, replaced: Replaced) -> None:
        """Take over what `replace_rows` returned."""
        self.counts = self.counts.plus(replaced.counts)
        if len(replaced.users):
            self.rows.replace(replaced.users, replaced.tables)
            with arrow_rows(self.connection, replaced.user_ids.to_frame().to_arrow()):
                self.connection.execute(statement("base_add_pending"))
            self._unwritten_users += len(replaced.users)
        if self._unwritten_users > _MAX_UNWRITTEN_USERS:
            self.write_changes()

    def reload_info(self) -> None:
        """Take over the row of `snapshot_info`."""
        self.info = stored_info(self.connection)

    def document_parts(
        self, users: pl.Series | None = None, leaderboards: Sequence[str] = ()
    ) -> Generator[pl.DataFrame]:
        """Yield the documents of users, or of all, like `documents.document_parts`; of some, at the cost of these."""
        if users is None:
            self.write_changes()
            yield from documents_of(self.connection, self.info, "reputation", None, leaderboards)
            return
        with self._loaded(users) as (source, scopes):
            yield from documents_of(self.connection, self.info, source, users, leaderboards, scopes)

    def documents_and_shown(
        self, users: pl.Series, leaderboards: Sequence[str] = ()
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the documents of users, and what is shown of them like `documents.shown_rows`."""
        with self._loaded(users) as (source, scopes):
            rows = pl.concat(documents_of(self.connection, self.info, source, users, leaderboards, scopes, SHOWN))
        return rows.drop("shown"), rows.select("user_id", "shown")

    def shown_rows(self, users: pl.Series) -> pl.DataFrame:
        """Return what is shown of users like `documents.shown_rows`, at the cost of these."""
        with self._loaded(users) as (source, _):
            return shown_rows(self.connection, source, users)

    def shown_users(self) -> pl.Series:
        """Return the users like `documents.shown_users`."""
        self.write_changes()
        return shown_users(self.connection)

    @contextmanager
    def _loaded(self, users: pl.Series) -> Generator[tuple[str, dict[str, str]]]:
        """Make the stored rows of users readable; yield the sources of their scores, and of each scope."""
        hashes = self._hashes_of(users)
        scopes = self._shown_scopes(hashes)
        with arrow_rows(self.connection, self.rows.rows_of(self._table_of_scores(), hashes)):
            yield self._shown_scores(), scopes

    def _hashes_of(self, users: pl.Series) -> np.ndarray:
        with arrow_rows(self.connection, users.to_frame("user_id").to_arrow()):
            hashes = self.connection.execute(statement("histories_users")).fetchnumpy()["user_hash"]
        return np.sort(hashes)

    def _shown_scopes(self, users: np.ndarray) -> dict[str, str]:
        """Load the rows of users (sorted hashes) in the tables of scopes; return a query or table of each scope."""
        policy = self.info.policy.at(self.info.as_of)
        shown = dict[str, str]()
        for scope in policy.rules.scopes:
            name = scope_table(policy, scope)
            loaded = load_stored(self.connection, self.rows, name, users)
            shown[scope] = f"({scope_query(policy, scope, loaded)})" if policy.decays else loaded
        return shown

    def _shown_scores(self) -> str:
        """Return a query of `reputation` over the stored rows of some users."""
        policy, table = self.info.policy.at(self.info.as_of), self._table_of_scores()
        rows = statement("user_rows_read", columns=table_form(self._columns[table]))
        return f"({reputation_query(policy, f'({rows})') if policy.decays else rows})"

    def _table_of_scores(self) -> str:
        return SUMS if SUMS in self._columns else "reputation"

    def write_changes(self) -> None:
        """Write the rows that were replaced since the last call, so that SQL over the draft sees them."""
        if self._unwritten_users:
            self._write_pending()

    def _write_pending(self) -> None:
        users = self.connection.execute(statement("base_pending_hashes")).fetchnumpy()["user_hash"]
        users.sort()
        with transaction(self.connection):
            for name in self._columns:
                self._write_rows(name, users)
            self.connection.execute(statement("base_insert_users"))
            self.connection.execute(statement("base_add_newer"))
            self.connection.execute(statement("base_update_counts"), [*self.counts])
        self.connection.execute(statement("base_pending_users"))
        self._unwritten_users = 0

    def begin_newer(self) -> None:
        """From now on, note the users who change: a new base has the rows as they were written."""
        self.connection.execute(statement("base_newer_users"))

    def adopt(self, base: Path) -> None:
        """Continue with a base that has the rows as of `begin_newer`; only newer ones are changes to it."""
        users = np.sort(self.connection.execute(statement("base_newer_hashes")).fetchnumpy()["user_hash"])
        rows = {name: self.rows.rows_of(name, users) for name in self._columns}
        self.close()
        del self.rows
        self.base = base
        self.connection.execute("DETACH base")
        replace_changes(self.connection, base)
        self.rows.replace(users, rows)
        self.connection.execute(statement("base_newer_pending"))
        self._write_pending()

    def changed_share(self) -> float:
        """Return the share of the users whose rows in the base are superseded."""
        (changed,) = one_row(self.connection.execute(statement("base_count_changed")))
        return changed / max(1, self.counts.users)

    def close(self) -> None:
        """Remove the files that belong to this process. The connection remains open."""
        if "rows" in self.__dict__:
            self.rows.close()

    def _write_rows(self, name: str, users: np.ndarray) -> None:
        self.connection.execute(statement("base_delete_rows", name=name))
        with arrow_rows(self.connection, self.rows.rows_of(name, users)):
            columns = table_form(self._columns[name])
            self.connection.execute(statement("base_insert_rows", name=name, columns=columns))

    @cached_property
    def rows(self) -> UserRows:
        """The rows by user, opened when they are first needed."""
        base = {name: self._base_rows(name) for name in self._columns}
        rows = UserRows(self._columns, base, self.base.parent)
        users = self.connection.execute(statement("base_changed_hashes")).fetchnumpy()["user_hash"]
        if len(users):
            users.sort()
            rows.replace(users, {name: self._read(name) for name in self._columns})
        return rows

    def _base_rows(self, name: str) -> Rows:
        """Open the rows of a table of the base; write them first if they are missing or damaged."""
        try:
            return open_base_rows(self.base, name)
        except (OSError, ValueError):
            _write_rows(self.connection, self.base, name, self._columns[name])
            return open_base_rows(self.base, name)

    def _read(self, name: str) -> pa.Table:
        return _stored(self.connection, f"changed.{name}", self._columns[name]).read_all()


def write_rows_beside(connection: duckdb.DuckDBPyConnection, base: Path) -> None:
    """Write the rows of a base by user, by a connection of its own."""
    connection.execute(statement("base_attach", path=literal(str(base))))
    for name in divided_tables(connection):
        _write_rows(connection, base, name, columns_of(connection, f"base.main.{name}"))


def _write_rows(connection: duckdb.DuckDBPyConnection, base: Path, name: str, columns: Columns) -> None:
    write_base_rows(base, name, _stored(connection, f"base.main.{name}", columns))


def _stored(connection: duckdb.DuckDBPyConnection, relation: str, columns: Columns) -> pa.RecordBatchReader:
    """Return the rows of a table in their stored form, in the order of users."""
    return read_rows(connection, statement("user_rows_stored", columns=stored_form(columns), relation=relation))
