"""The histories under the current user_ids of merged users.

The histories hold events as the lake does. Here a user, or the link of a value, stands for all names of one person, and
rows are resolved when they are read, so a merge changes no file of the histories. All methods are those of `Histories`.
"""

from collections.abc import Iterable

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.reputation.histories import NO_USERS, Histories, IsWanted
from pipelines.reputation.merged_users import Aliases, load_aliases, resolved_events
from pipelines.reputation.segment import ROWS
from pipelines.reputation.sorted_words import contains, union
from pipelines.reputation.sql import arrow_rows, statement


class _Names:
    """The hashes of former names, and of the current ones."""

    def __init__(self, former: np.ndarray, current: np.ndarray) -> None:
        order = np.argsort(former)
        self.former, self._current = former[order], current[order]

    def resolve(self, hashes: np.ndarray) -> np.ndarray:
        """Return the current names for names, as a set."""
        is_former = contains(self.former, hashes)
        at = np.searchsorted(self.former, hashes[is_former])
        return union(hashes[~is_former], self._current[at])

    def resolve_each(self, hashes: np.ndarray) -> np.ndarray:
        """Return the current name for each name."""
        is_former = contains(self.former, hashes)
        resolved = hashes.copy()
        resolved[is_former] = self._current[np.searchsorted(self.former, hashes[is_former])]
        return resolved

    def expand(self, hashes: np.ndarray) -> np.ndarray:
        """Return every name of the persons whom names stand for, as a set."""
        current = self.resolve(hashes)
        return union(current, self.former[contains(current, self._current)])

    def add_up(self, current: np.ndarray, counts: np.ndarray, of_former: np.ndarray) -> np.ndarray:
        """Return counts of current names (a set) with those of their former names."""
        wanted = contains(current, self._current)
        np.add.at(counts, np.searchsorted(current, self._current[wanted]), of_former[wanted])
        return counts


_NO_NAMES = _Names(NO_USERS, NO_USERS)


def _names(connection: duckdb.DuckDBPyConnection, hashes: str) -> _Names:
    """Return the names of the statement `hashes`."""
    found = connection.execute(statement(hashes)).fetchnumpy()
    return _Names(found["old"], found["new"])


class ResolvedHistories:
    """Histories as the steps see them; `connection` is used to resolve rows."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, histories: Histories, known: Aliases) -> None:
        self._connection, self._histories, self._known = connection, histories, known
        self._users = self._links = _NO_NAMES
        if known:
            load_aliases(connection, known)
            self._users, self._links = (_names(connection, name) for name in ("alias_hashes", "alias_links"))

    def changed_users(self, after: int, ranges: Iterable[tuple[int, int]], until_us: int) -> np.ndarray:
        """Return the persons of events that were added after a version, or whose time is in one of `ranges`."""
        return self._users.resolve(self._histories.changed_users(after, ranges, until_us))

    def users_between(self, ranges: Iterable[tuple[int, int]]) -> np.ndarray:
        """Return the persons of events whose time is in one of the ranges."""
        return self._users.resolve(self._histories.users_between(ranges))

    def count_of(self, users: np.ndarray) -> np.ndarray:
        """Return how many events each of these persons (sorted hashes) has: int64, shape (users,)."""
        of_former = self._histories.count_of(self._users.former)
        return self._users.add_up(users, self._histories.count_of(users), of_former)

    def events_of(self, users: np.ndarray) -> pa.Table:
        """Return the events (ROWS) of persons (sorted hashes)."""
        return self._resolve(self._histories.events_of(self._users.expand(users)))

    def events_after(self, after: int, since_us: int, until_us: int) -> pa.Table:
        """Return the events before `until_us` that were added after a version, or with since_us <= t."""
        return self._resolve(self._histories.events_after(after, since_us, until_us))

    def facts_where(self, users: np.ndarray, is_wanted: IsWanted) -> pa.Table:
        """Return the events of persons (sorted hashes) that are wanted, without their metadata: the columns FACTS."""

        def of_persons(names: np.ndarray, times: np.ndarray, versions: np.ndarray) -> np.ndarray:
            return is_wanted(self._users.resolve_each(names), times, versions)

        facts = self._histories.facts_where(self._users.expand(users), of_persons)
        if not self._known:
            return facts
        load_aliases(self._connection, self._known)
        with arrow_rows(self._connection, facts):
            return self._connection.sql(statement("resolved_users", source="arrow_rows")).to_arrow_table()

    def users_linked(self, links: np.ndarray) -> np.ndarray:
        """Return the persons of the events with one of these links (sorted hashes)."""
        return self._users.resolve(self._histories.users_linked(self._links.expand(links)))

    def events_linked(self, links: np.ndarray) -> pa.Table:
        """Return the events with one of these links (sorted hashes)."""
        return self._resolve(self._histories.events_linked(self._links.expand(links)))

    def events_with_ids(self, users: np.ndarray, event_ids: pa.Array) -> pa.Table:
        """Return the events of persons (sorted hashes) with one of these event_ids."""
        return self._resolve(self._histories.events_with_ids(self._users.expand(users), event_ids))

    def _resolve(self, rows: pa.Table) -> pa.Table:
        return resolve_rows(self._connection, rows, self._known)


def resolve_rows(connection: duckdb.DuckDBPyConnection, rows: pa.Table, known: Aliases) -> pa.Table:
    """Return events (ROWS) under current user_ids; loads `known` into the connection."""
    if not known or not len(rows):
        return rows
    load_aliases(connection, known)
    with arrow_rows(connection, rows):
        query = resolved_events(known, "arrow_rows")
        return connection.sql(statement("resolved_rows", query=query)).to_arrow_table().select(ROWS.names).cast(ROWS)
