"""The rows that a draft has of its users as of a moment, and their documents: for any thread, beside later refreshes.

Nothing here touches the draft's file: the rows are Arrow tables (`user_rows.py`), which a connection of its own reads.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

from pipelines.reputation.documents import SHOWN, documents_of, shown_rows
from pipelines.reputation.scopes import scope_query, scope_table
from pipelines.reputation.sql import arrow_rows, statement
from pipelines.reputation.user_rows import StoredRows, load_rows, table_form
from pipelines.reputation.views import reputation_query
from pipelines.reputation.warehouse_file import Info
from pipelines.reputation.warehouse_tables import SUMS


@dataclass(frozen=True, slots=True)
class DraftRows:
    """The rows as of a moment. The methods take any connection that nothing else uses meanwhile."""

    info: Info
    """What the rows reflect."""
    stored: StoredRows

    def document_parts(
        self, connection: duckdb.DuckDBPyConnection, users: pl.Series, leaderboards: Sequence[str] = ()
    ) -> Generator[pl.DataFrame]:
        """Yield the documents of users (String) like `documents.document_parts`, at the cost of these users."""
        with self._loaded(connection, users) as (source, scopes):
            yield from documents_of(connection, self.info, source, users, leaderboards, scopes)

    def documents_and_shown(
        self, connection: duckdb.DuckDBPyConnection, users: pl.Series, leaderboards: Sequence[str] = ()
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the documents of users, and what is shown of them like `documents.shown_rows`."""
        with self._loaded(connection, users) as (source, scopes):
            rows = pl.concat(documents_of(connection, self.info, source, users, leaderboards, scopes, SHOWN))
        return rows.drop("shown"), rows.select("user_id", "shown")

    def shown_rows(self, connection: duckdb.DuckDBPyConnection, users: pl.Series) -> pl.DataFrame:
        """Return what is shown of users like `documents.shown_rows`, at the cost of these."""
        with self._loaded(connection, users) as (source, _):
            return shown_rows(connection, source, users)

    def users_from(self, position: int, count: int) -> tuple[pl.Series, int]:
        """Return about `count` users (String), the next from a position on, and the position after them.

        The order and the positions are those of `StoredRows.users_from`.
        """
        hashes, after = self.stored.users_from(self._scores, position, count)
        return pl.Series("user_id", self.stored.rows_of(self._scores, hashes)["user_id"], pl.String), after

    @property
    def _scores(self) -> str:
        """The table of the scores."""
        return SUMS if SUMS in self.stored.columns else "reputation"

    @contextmanager
    def _loaded(self, connection: duckdb.DuckDBPyConnection, users: pl.Series) -> Generator[tuple[str, dict[str, str]]]:
        """Make the rows of users readable; yield the sources of their scores, and of each scope."""
        hashes = _hashes_of(connection, users)
        scopes = self._scopes(connection, hashes)
        with arrow_rows(connection, self.stored.rows_of(self._scores, hashes)):
            yield self._shown_scores(), scopes

    def _scopes(self, connection: duckdb.DuckDBPyConnection, users: np.ndarray) -> dict[str, str]:
        """Load the rows of users (sorted hashes) in the tables of scopes; return a query or table of each scope."""
        policy = self.info.policy.at(self.info.as_of)
        shown = dict[str, str]()
        for scope in policy.rules.scopes:
            loaded = load_rows(connection, self.stored, scope_table(policy, scope), users)
            shown[scope] = f"({scope_query(policy, scope, loaded)})" if policy.decays else loaded
        return shown

    def _shown_scores(self) -> str:
        """Return a query of `reputation` over the rows of some users."""
        policy = self.info.policy.at(self.info.as_of)
        rows = statement("user_rows_read", columns=table_form(self.stored.columns[self._scores]), rows="arrow_rows")
        return f"({reputation_query(policy, f'({rows})') if policy.decays else rows})"


def _hashes_of(connection: duckdb.DuckDBPyConnection, users: pl.Series) -> np.ndarray:
    with arrow_rows(connection, users.to_frame("user_id").to_arrow()):
        hashes = connection.execute(statement("histories_users")).fetchnumpy()["user_hash"]
    return np.sort(hashes)
