"""The steps of a refresh, in the order in which `Draft._refresh` (`derive.py`) runs them.

1. `find_affected_users`: whose rows may differ from those of the warehouse.
2. `select_affected_users`: without heavy users, who are deferred, or with those deferred before.
3. `load_affected_events`: every event that these users' rows depend on.
4. `replace_rows`: compare their recomputed rows with the stored ones, table by table, and write the difference.
5. `recompute_pending_trends`, before a publication: the trends of the days that changed.

The SQL is `sql/refresh.sql`, in the same order. Needs `by_user` (`by_user.py`), `erased_event` (`load_erased_events`),
and the steps of the derivation, defined over `affected_event`. Between 3 and 4 the caller computes `fact` for the
affected users.
"""

from collections.abc import Mapping

import duckdb
import polars as pl

from pipelines.lake.erased_events import erased_events_since
from pipelines.lake.tables import Snapshot
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.numbers import DAY_US
from pipelines.reputation.sql import one_row, statement
from pipelines.reputation.warehouse_tables import pending_trend_tables

_TABLES_BY_DAY = {"user_days", "user_reasons"}


def create_refresh_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the tables that last from one refresh to the next: deferred users, and days with outdated trends."""
    connection.execute(statement("refresh_changed_day_table"))
    connection.execute(statement("refresh_deferred_user"))


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
    connection.register("arrow_rows", erased)
    connection.execute(statement("refresh_erased_event"))
    connection.unregister("arrow_rows")
    return len(erased)


def find_affected_users(
    connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, since_version: int, since_us: int
) -> int:
    """Fill `affected_hash` with the users whose rows may differ from the warehouse's; return how many.

    A user is affected by an event that became known, through a commit or because as_of passed its time, and by an
    event that crossed the edge of a window or expired. A completion affects all users with events at its key, and so do
    erased events; nothing else of one user affects another.

    since_version, since_us: lake version and as_of (microseconds since 1970) of the warehouse.
    Users are found by hash; a hash stands for all users who share it.
    """
    connection.execute("SET VARIABLE since_version = ?", [since_version])
    connection.execute("SET VARIABLE since_as_of = CAST(? AS BIGINT)", [since_us])
    is_new = statement("refresh_is_new")
    connection.execute(statement("refresh_affected_hash", is_new=is_new, has_moved=_has_moved(policy)))
    if _has_completions(policy):
        connection.execute(statement("refresh_changed_key", is_new=is_new))
        connection.execute(statement("refresh_affected_by_completion"))
    return _count_affected(connection)


def select_affected_users(connection: duckdb.DuckDBPyConnection, max_events: int | None) -> int:
    """Defer affected users with more than `max_events` events, or (None) include those deferred; return how many stay.

    A deferred user stays deferred until a call with None, whether affected again or not.
    """
    if max_events is None:
        connection.execute(statement("refresh_include_deferred_users"))
        connection.execute(statement("refresh_deferred_user"))
    else:
        connection.execute(statement("refresh_defer_heavy_users", max_events=str(max_events)))
        connection.execute(statement("refresh_without_deferred_users"))
    return _count_affected(connection)


def load_affected_events(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> None:
    """Fill `affected_event` with every event that the affected users' rows depend on, and `affected_user`.

    Erased users are among the latter: no row is computed for them, so `replace_rows` deletes theirs.
    """
    create_affected_event(connection)
    connection.execute(statement("refresh_load_affected_events"))
    if _has_completions(policy):
        connection.execute(statement("refresh_related_user"))
        connection.execute(statement("refresh_related_time"))
        connection.execute(statement("refresh_related_corrected"))
        connection.execute(statement("refresh_load_related_events"))
    connection.execute(statement("refresh_affected_user"))


def replace_rows(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, str]) -> pl.Series:
    """Make each table hold its query's rows for the affected users; return the users whose `reputation` row changed.

    tables: the query of each table by its name, restricted to `affected_user`.
    Returns user_ids (String). Rows that do not differ are not written.
    """
    changed = pl.Series("user_id", [], dtype=pl.String)
    for name, query in tables.items():
        _replace_rows_of(connection, name, query)
        if name in _TABLES_BY_DAY:
            connection.execute(statement("refresh_changed_day"))
        if name == "reputation":
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


def _count_affected(connection: duckdb.DuckDBPyConnection) -> int:
    return one_row(connection.execute("SELECT count(*) FROM affected_hash"))[0]


def _has_completions(policy: EffectivePolicy) -> bool:
    return any(edition.rules.completion for edition in policy.editions)


def _has_moved(policy: EffectivePolicy) -> str:
    """Return the condition that an event crossed an edge between the two moments.

    Windows contain their start, so an event leaves one after it; a penalty expires at its age exactly.
    """
    start, end = "getvariable('since_as_of')", "getvariable('as_of')"
    windows = [days * DAY_US for days in policy.rules.windows_days]
    moved = [f"(t >= {start} - {window} AND t < {end} - {window})" for window in windows]
    moved += [f"(t > {start} - {age} AND t <= {end} - {age})" for age in _expiry_ages(policy)]
    return " OR ".join(moved) or "false"


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
