"""A session on one published warehouse: opened, switched to a newer one, asked by SQL, and closed.

Owns the connection and the readers' own tables. `query_guard.py` decides what is a query, `query_errors.py` words what
is wrong with one; the questions about reputations are in `warehouse.py`.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.errors import ConfigurationError, UsageError
from pipelines.reputation.notebook_progress import show_progress
from pipelines.reputation.own_tables import Tables, as_arrow, check_name, select_named, without
from pipelines.reputation.query_errors import Parameters, check_parameters, check_types, explained
from pipelines.reputation.query_guard import check_query, named_tables
from pipelines.reputation.remote_warehouse import downloaded
from pipelines.reputation.trends import trends
from pipelines.reputation.warehouse_file import NO_FILES, USE_WAREHOUSE, Access, attach, stored_info

_INTERRUPT_SECONDS = 0.1
"""Interval of interruptions after the first: the next statement of the block would run without a limit."""
_TABLES = """
    SELECT table_name
    FROM information_schema.tables
    WHERE table_catalog = 'warehouse' AND table_schema = 'main'
    ORDER BY ALL
"""
"""Not for the readers' connection, where they may call a table like a part of information_schema."""


@contextmanager
def running(task: str) -> Generator[None]:
    """Show the progress of our own statements, and raise their failures as errors of the tree."""
    with show_progress(task), explained():
        yield


def _cursor(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Return another connection to the same warehouse, without its temporary objects; it closes with the first."""
    cursor = connection.cursor()
    cursor.execute(USE_WAREHOUSE)
    return cursor


class Session:
    """What a handle on a warehouse does whatever it is asked; `Warehouse` is the one for users."""

    def __init__(
        self,
        path: Path,
        connection: duckdb.DuckDBPyConnection | None = None,
        access: Access = NO_FILES,
        lake_uri: str | None = None,
        origin: "Session | None" = None,
    ) -> None:
        self.path = path
        self._lake_uri = lake_uri
        """The lake on S3 whose published warehouse this is; None for one on disk."""
        self._access = access
        self._origin = origin
        """The handle of which this is a snapshot: a connection closes with it."""
        self._own: dict[str, pa.Table] = {}
        self._connect(connection or attach(path, access))

    @classmethod
    def on_s3(cls, lake_uri: str, access: Access = NO_FILES) -> Self:
        """Download the published warehouse of a lake on S3 and open it. Raises like `open_warehouse`."""
        with downloaded(lake_uri) as path:
            return cls(path, access=access, lake_uri=lake_uri)

    def _connect(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Use a connection for our statements, and a cursor of it for readers' SQL, whose tables ours do not see."""
        self._connection = connection
        self._queries = _cursor(connection)
        for name, table in self._own.items():
            self._queries.register(name, table)
        self.info = stored_info(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Warehouse {', '.join(f'{name} {value}' for name, value in self._described())}>"

    def _repr_html_(self) -> str:
        """Return the HTML that notebooks show: version, moment and policy, and the names of tables and trends."""
        rows = self._described()
        if not self._is_closed():
            rows += [("tables", ", ".join(self._ipython_key_completions_())), ("trends", ", ".join(trends()))]
        left = 'style="text-align: left"'  # notebooks right-align cells by default
        cells = (f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>" for name, value in rows)
        return f"<table>{''.join(cells)}</table>"

    def _described(self) -> list[tuple[str, str]]:
        info = self.info
        return [
            *([("closed", "open it again with open_warehouse()")] if self._is_closed() else []),
            ("at", self._lake_uri or str(self.path)),
            ("lake version", str(info.lake_version)),
            ("as of", f"{info.as_of:%Y-%m-%d %H:%M:%S} UTC"),
            ("policy", f"{info.policy.name} {info.policy_version}"),
        ]

    def _is_closed(self) -> bool:
        try:
            self._connection.execute("SELECT 1").fetchall()  # a result that is not read blocks the connection
        except duckdb.ConnectionException:
            return True
        return False

    def __getitem__(self, table: str) -> duckdb.DuckDBPyRelation:
        """Return a table or view as a lazy DuckDB relation; in notebooks the tab key completes its name.

        Raises UsageError, listing the known names, for an unknown one.
        """
        if table not in (known := self._ipython_key_completions_()):
            raise UsageError(f"there is no table {table!r}: there are {', '.join(known)}")
        return self._queries.table(table)

    def _ipython_key_completions_(self) -> list[str]:
        return [*self.tables(), *self._own]

    def tables(self) -> list[str]:
        """Return the names of the warehouse's tables and views."""
        with explained():
            return [name for (name,) in self._connection.execute(_TABLES).fetchall()]

    def close(self) -> None:
        """Close the connection, and those of its snapshots."""
        self._connection.close()

    def refresh(self) -> bool:
        """Switch to the warehouse published now; return whether it is a newer one.

        Existing relations and snapshots keep the old one.
        """
        before = self.info
        if self._lake_uri is None:
            self._connect(attach(self.path, self._access))
        else:
            with downloaded(self._lake_uri) as self.path:
                self._connect(attach(self.path, self._access))
        return self.info != before

    def snapshot(self) -> Self:
        """Return another handle on the current contents, which `refresh()` of this one does not change.

        Closing this handle closes it, too.
        """
        with explained():
            pinned = type(self)(self.path, _cursor(self._connection), self._access, self._lake_uri, self)
        for name, table in self._own.items():
            pinned.register(name, table)
        return pinned

    def register(self, name: str, table: Any) -> None:
        """Make a table of yours readable as `name` by this handle's SQL, until it is closed; again replaces it.

        table: a frame of polars or pandas, a table of Arrow, or a relation of DuckDB, as it is now: a lazy one is run.
        Raises UsageError for anything else, and for the name of a table of the warehouse.
        """
        check_name(name, self.tables())
        self._own = without(name, self._own) | {name: as_arrow(name, table)}
        with explained():
            self._queries.register(name, self._own[name])

    @contextmanager
    def time_limit(self, seconds: float, remedy: str = "narrow it down") -> Generator[None]:
        """Interrupt the queries of the block after `seconds`. Raises UsageError then, which says what to do."""
        done = threading.Event()

        def interrupt() -> None:
            wait = seconds
            while not done.wait(wait):
                self._connection.interrupt()
                self._queries.interrupt()
                wait = _INTERRUPT_SECONDS

        interrupter = threading.Thread(target=interrupt, daemon=True)
        interrupter.start()
        try:
            yield
        except duckdb.InterruptException:
            raise UsageError(f"no answer within {seconds:,g} s, so the query was stopped: {remedy}") from None
        finally:
            done.set()
            interrupter.join()

    def relation(self, query: str, params: Parameters = None) -> duckdb.DuckDBPyRelation:
        """Return a query as a lazy DuckDB relation, which runs when its rows are taken.

        params: a list with a value for each `?`, or a dictionary with one for each `$name`.
        Raises UsageError, with a mark under the place, unless `query` is one query that only reads and `params` fits.
        """
        with explained(self._queries, query, params):
            check_query(self._queries, query, with_files=self._access.all_files)
            check_parameters(query, params)
            return self._queries.sql(query, params=params)

    def sql(self, query: str, params: Parameters = None, tables: Tables | None = None) -> pl.DataFrame:
        """Return the rows of a query; `params` and errors as of `relation()`.

        tables: your own tables by name, as of `register()`, for this query only; those that it does not name are not
        read.
        """
        with self._asked(query, params, tables):
            rows = self.relation(query, params)
            check_types(rows)
            return rows.pl()

    def arrow(self, query: str, params: Parameters = None, tables: Tables | None = None) -> pa.Table:
        """Return the rows of a query as an Arrow table; arguments and errors as of `sql()`."""
        with self._asked(query, params, tables):
            return self.relation(query, params).to_arrow_table()

    def pandas(self, query: str, params: Parameters = None, tables: Tables | None = None) -> Any:
        """Return the rows of a query as a pandas data frame; arguments and errors as of `sql()`.

        Raises ConfigurationError when pandas is not installed; karmalake does not depend on it.
        """
        if find_spec("pandas") is None:
            raise ConfigurationError(
                ".pandas() needs pandas, which is not installed: pip install pandas, or take .sql() or .arrow() instead"
            )
        with self._asked(query, params, tables):
            return self.relation(query, params).df()

    @contextmanager
    def _asked(self, query: str, params: Parameters, tables: Tables | None) -> Generator[None]:
        """Run a reader's query with its tables, show its progress, and raise its mistakes as sentences."""
        mistakes = explained(self._queries, query, params)
        with explained(), self._borrowed(query, tables), show_progress("the query"), mistakes:
            yield

    @contextmanager
    def _borrowed(self, query: str, tables: Tables | None) -> Generator[None]:
        """Register the tables that a query names, and afterwards those that had their names before."""
        named = set[str]() if tables is None else named_tables(self._queries, query)
        borrowed = select_named(named, tables)
        try:
            for name, table in borrowed.items():
                check_name(name, self.tables())
                self._queries.register(name, as_arrow(name, table))
            yield
        finally:
            for name in borrowed:
                self._queries.unregister(name)
            for name in select_named({*borrowed}, self._own):
                self._queries.register(name, self._own[name])
