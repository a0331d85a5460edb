"""The steps of a refresh, in the order in which `Draft._refresh` (`derive.py`) runs them.

1. `find_affected_users`: whose rows may differ from those of the warehouse.
2. `load_affected_events`: every event that these users' rows depend on.
3. `replace_rows`: compare their recomputed rows with the stored ones, table by table, and write the difference.
4. `recompute_pending_trends`, before a publication: the trends of the days that changed.

The SQL is `sql/refresh.sql`, in the same order. Needs the histories (`histories.py`), `erased_event`
(`load_erased_events`), and the steps of the derivation, defined over `affected_event`. Between 2 and 3 the caller
computes `fact` for the affected users.
"""

from collections.abc import Mapping

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.lake.erased_events import erased_events_since
from pipelines.lake.tables import Snapshot
from pipelines.reputation.histories import Histories
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.numbers import DAY_US
from pipelines.reputation.related_events import completed_together, completing_events, has_completions
from pipelines.reputation.sql import arrow_rows, statement
from pipelines.reputation.warehouse_tables import SUMS, pending_trend_tables

_TABLES_BY_DAY = {"user_days", "user_reasons"}
_TABLES_OF_SCORES = {"reputation", SUMS}


def create_refresh_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the table that lasts from one refresh to the next: days with outdated trends."""
    connection.execute(statement("refresh_changed_day_table"))


def create_affected_event(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the empty table `affected_event`, for the steps to be defined over."""
    connection.execute(statement("refresh_affected_event"))


def load_erased_events(
    connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, since_version: int, since_erasures: int
) -> int:
    """Fill `erased_event` with the events that erasures removed since the warehouse was derived; return how many.

    since_version, since_erasures: lake version of the warehouse, and number of erasures that the lake had applied.
    Raises like `erased_events_since`.
    """
    erased = erased_events_since(snapshot, since_version, since_erasures)
    with arrow_rows(connection, erased):
        connection.execute(statement("refresh_erased_event"))
    return len(erased)


def find_affected_users(
    connection: duckdb.DuckDBPyConnection,
    histories: Histories,
    policy: EffectivePolicy,
    since: tuple[int, int],
    as_of_us: int,
) -> np.ndarray:
    """Return the users whose rows may differ from the warehouse's, as sorted hashes: uint64, shape (users,).

    A user is affected by an event that became known, through a commit or because as_of passed its time, and by an
    event that crossed the edge of a window or expired. A completion affects all users with events at its key, and so do
    erased events; nothing else of one user affects another.

    since: lake version and as_of (microseconds since 1970) of the warehouse.
    A hash stands for all users who share it.
    """
    version, since_us = since
    users = histories.changed_users(version, [(since_us, as_of_us), *_moved(policy, since_us, as_of_us)], as_of_us)
    if not has_completions(policy):
        return users
    changed = histories.events_after(version, since_us, as_of_us)
    erased = connection.execute(statement("refresh_erased_links")).fetchnumpy()["link"]
    return np.union1d(users, completed_together(connection, histories, changed, erased))


def load_affected_events(
    connection: duckdb.DuckDBPyConnection, histories: Histories, policy: EffectivePolicy, users: np.ndarray
) -> None:
    """Fill `affected_event` with every event that the rows of users (sorted hashes) depend on, and `affected_user`.

    Erased users are among the latter: no row is computed for them, so `replace_rows` deletes theirs.
    """
    create_affected_event(connection)
    events = histories.events_of(users)
    _load(connection, events)
    connection.execute(statement("refresh_affected_user"))
    if has_completions(policy):
        _load(connection, completing_events(connection, histories, events, users))


def _load(connection: duckdb.DuckDBPyConnection, events: pa.Table) -> None:
    with arrow_rows(connection, events):
        connection.execute(statement("refresh_load_events"))


def replace_rows(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, str]) -> pl.Series:
    """Make each table hold its query's rows for the affected users; return the users whose scores changed.

    tables: the query of each table by its name, restricted to `affected_user`.
    Returns user_ids (String): those whose row of `reputation`, or of the sums behind it, changed. Rows that do not
    differ are not written.
    """
    changed = pl.Series("user_id", [], dtype=pl.String)
    for name, query in tables.items():
        _replace_rows_of(connection, name, query)
        if name in _TABLES_BY_DAY:
            connection.execute(statement("refresh_changed_day"))
        if name in _TABLES_OF_SCORES:
            changed = connection.sql(statement("refresh_changed_user")).pl()["user_id"]
    return changed


def _replace_rows_of(connection: duckdb.DuckDBPyConnection, name: str, query: str) -> None:
    connection.execute(statement("refresh_recomputed", query=query))
    connection.execute(statement("refresh_stored", name=name))
    connection.execute(statement("refresh_deleted"))
    connection.execute(statement("refresh_inserted"))
    connection.execute(statement("refresh_delete_rows", name=name))
    connection.execute(statement("refresh_insert_rows", name=name))


def recompute_pending_trends(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> None:
    """Recompute the trends of the days that changed since this was last done."""
    connection.execute(statement("refresh_pending_day"))
    for name, query in pending_trend_tables(policy).items():
        connection.execute(statement("refresh_delete_days", name=name))
        connection.execute(statement("insert_rows", name=name, query=query))
    connection.execute(statement("refresh_changed_day_table"))


def _moved(policy: EffectivePolicy, start: int, end: int) -> list[tuple[int, int]]:
    """Return the times, as ranges [start, end), of the events that crossed an edge between two moments.

    Windows contain their start, so an event leaves one after it; a penalty expires at its age exactly. All in
    microseconds since 1970.
    """
    windows = [days * DAY_US for days in policy.rules.windows_days]
    moved = [(start - window, end - window) for window in windows]
    return moved + [(start - age + 1, end - age + 1) for age in _expiry_ages(policy)]


def _expiry_ages(policy: EffectivePolicy) -> list[int]:
    """Return the ages at which penalties expire, in microseconds."""
    emissions = (
        emission
        for edition in policy.editions
        for action in edition.rules.actions.values()
        for emission in action.emissions
    )
    days = {emission.penalties_expire_after_days for emission in emissions}
    return [age * DAY_US for age in sorted(filter(None, days))]
