"""The tables of a draft: its base, what changed since, and the rows by user that a refresh compares with.

A refresh replaces rows of users in memory, and changes nothing in the draft's file. A publication writes them there in
a thread, as they are when it begins (`unwritten.py`), so it never holds up refreshes. After a crash the published file
has everything up to that publication, and the events do.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.boundary.locked_sql import literal
from pipelines.reputation.base import divided_tables, replace_changes
from pipelines.reputation.documents import SHOWN, documents_of, shown_rows, shown_users
from pipelines.reputation.recent_events import RecentEvents, recent_in_warehouse
from pipelines.reputation.refresh_steps import Counts, Replaced, set_threads_for
from pipelines.reputation.scopes import scope_query, scope_table
from pipelines.reputation.sql import arrow_rows, one_row, statement
from pipelines.reputation.unwritten import Unwritten, changed_share
from pipelines.reputation.user_rows import (
    Columns,
    Rows,
    StoredRows,
    UserRows,
    columns_of,
    load_rows,
    open_base_rows,
    read_rows,
    stored_form,
    table_form,
    write_base_rows,
)
from pipelines.reputation.views import reputation_query
from pipelines.reputation.warehouse_file import Info, stored_info
from pipelines.reputation.warehouse_tables import SUMS

_NO_USERS = pl.DataFrame(schema={"user_id": pl.String})
_MANY_ROWS = 200_000
Finish = Callable[[duckdb.DuckDBPyConnection], object]
"""Completes the draft's file, by a connection of its own, after `Unwritten` is written."""


class _Noted:
    """Users whom refreshes note for the next publication, which may be long after: about twice the distinct ones."""

    def __init__(self) -> None:
        self._parts, self._size, self._limit = [_NO_USERS], 0, _MANY_ROWS

    def add(self, rows: pl.DataFrame) -> None:
        """Note more rows. Repeats are removed whenever there are twice as many as after the last time."""
        self._parts.append(rows)
        self._size += rows.height
        if self._size > self._limit:
            self._parts = [self.rows().unique()]
            self._size = self._parts[0].height
            self._limit = max(_MANY_ROWS, 2 * self._size)

    def rows(self) -> pl.DataFrame:
        """Return all of them, with repeats."""
        return pl.concat(self._parts)


class DraftTables:
    """The tables of a draft, over a connection to its file. Not thread-safe."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, base: Path) -> None:
        self.connection, self.base, self.info = connection, base, stored_info(connection)
        self.counts = Counts(*one_row(connection.execute(statement("base_read_counts"))))
        self.recent_events: RecentEvents = partial(recent_in_warehouse, connection, self.info)
        """Returns what happened to users until as_of; the draft replaces it when it is rebuilt or refreshed."""
        self._is_written = True
        self._unwritten = _Noted()
        """The users who changed since the file was written."""
        self._written: StoredRows | None = None
        """The rows of all users as the file has them; None before the rows are opened."""
        self._newer = _Noted()
        """Those who changed since the last publication began that may begin a new base: changes to that base."""
        self._begun: StoredRows | None = None
        """The rows as of that publication, which the new base has."""
        self._writing: Future[float] | None = None
        self._columns = {name: columns_of(connection, name) for name in divided_tables(connection)}

    def replace(self, replaced: Replaced, info: Info) -> None:
        """Take over what `replace_rows` returned, and what the tables reflect then."""
        self.info, self.counts, self._is_written = info, self.counts.plus(replaced.counts), False
        if len(replaced.users):
            self.rows.replace(replaced.users, replaced.tables)
            self._unwritten.add(replaced.user_ids.to_frame())
            self._newer.add(replaced.user_ids.to_frame())

    def document_parts(
        self, users: pl.Series | None = None, leaderboards: Sequence[str] = ()
    ) -> Generator[pl.DataFrame]:
        """Yield the documents of users, or of all, like `documents.document_parts`; of some, at the cost of these."""
        if users is None:
            self.write_changes()
            set_threads_for(self.connection, self.counts.users)
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

    def users_from(self, position: int, count: int) -> tuple[pl.Series, int]:
        """Return about `count` users (String), the next from a position on, and the position after them.

        The order and the positions are those of `StoredRows.users_from`.
        """
        table, stored = self._table_of_scores(), self.rows.stored()
        hashes, after = stored.users_from(table, position, count)
        return pl.Series("user_id", stored.rows_of(table, hashes)["user_id"], pl.String), after

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
            loaded = load_rows(self.connection, self.rows.stored(), name, users)
            shown[scope] = f"({scope_query(policy, scope, loaded)})" if policy.decays else loaded
        return shown

    def _shown_scores(self) -> str:
        """Return a query of `reputation` over the stored rows of some users."""
        policy, table = self.info.policy.at(self.info.as_of), self._table_of_scores()
        rows = statement("user_rows_read", columns=table_form(self._columns[table]), rows="arrow_rows")
        return f"({reputation_query(policy, f'({rows})') if policy.decays else rows})"

    def _table_of_scores(self) -> str:
        return SUMS if SUMS in self._columns else "reputation"

    def write_changes(self) -> None:
        """Write what changed since the last call, so that SQL over the draft sees it."""
        self.settle()
        if not self._is_written:
            changes = self._changes()
            with self.connection.cursor() as connection:
                changes.write(connection)
            self._continue_after(changes)

    def begin_writing(self, thread: Executor, finish: Finish, *, begins_newer: bool) -> "Future[float]":
        """Write what changed until now in a thread, while refreshes continue; return `changed_share` as of then.

        Nothing else may write to the file until that is done: `settle`. An error invalidates the draft.

        begins_newer: whether a new base may be begun from what is written, and has users who change from now on.
        """
        self.settle()
        connection, changes = self.connection.cursor(), self._changes()
        self._continue_after(changes)
        if begins_newer:
            self._newer, self._begun = _Noted(), changes.rows
            if changes.rows is not None:
                self.rows.begin_base()

        def write() -> float:
            with connection:
                changes.write(connection)
                finish(connection)
                return changed_share(connection)

        self._writing = thread.submit(write)
        return self._writing

    def settle(self) -> None:
        """Wait for what `begin_writing` began, and raise its error."""
        if self._writing is not None:
            self._writing.result()

    def has_failed(self) -> bool:
        """Return whether what `begin_writing` began has failed."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def _changes(self) -> Unwritten:
        rows = self.rows.stored() if "rows" in self.__dict__ else None
        users = self._unwritten.rows()["user_id"]
        return Unwritten(self.info, self.counts, users, self._written, rows, self._columns)

    def _continue_after(self, changes: Unwritten) -> None:
        """Note changes from now on: what there is, is written or will be before anything else is."""
        self._unwritten, self._written, self._is_written = _Noted(), changes.rows, True

    def adopt(self, base: Path) -> None:
        """Continue with a base that has the rows as they were when it was begun; only newer ones are changes to it."""
        self.base = base
        self.connection.execute("DETACH base")
        replace_changes(self.connection, base)
        if "rows" in self.__dict__:
            self.rows.continue_with(self._rows_of_base())
        self._unwritten.add(self._newer.rows())
        self._written, self._is_written = self._begun, False

    def changed_share(self) -> float:
        """Return the share of the users whose rows in the base are superseded."""
        self.write_changes()
        return changed_share(self.connection)

    def close(self) -> None:
        """End writing, and remove the files that belong to this process. The connection remains open."""
        if self._writing is not None:
            wait([self._writing])
        if "rows" in self.__dict__:
            self.rows.close()

    @cached_property
    def rows(self) -> UserRows:
        """The rows by user, opened when they are first needed."""
        rows = UserRows(self._columns, self._rows_of_base(), self.base.parent)
        users = self.connection.execute(statement("base_changed_hashes")).fetchnumpy()["user_hash"]
        if len(users):
            users.sort()
            rows.replace(users, {name: self._read(name) for name in self._columns})
        self._written = self._begun = rows.stored()
        return rows

    def _rows_of_base(self) -> dict[str, Rows]:
        return {name: self._base_rows(name) for name in self._columns}

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
    with _stored(connection, f"base.main.{name}", columns) as rows:
        write_base_rows(base, name, rows)


def _stored(connection: duckdb.DuckDBPyConnection, relation: str, columns: Columns) -> pa.RecordBatchReader:
    """Return the rows of a table in their stored form, in the order of users."""
    return read_rows(connection, statement("user_rows_stored", columns=stored_form(columns), relation=relation))
