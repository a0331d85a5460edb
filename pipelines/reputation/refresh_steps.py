"""The steps of a refresh, in the order in which `Draft._refresh` (`derive.py`) runs them.

1. `find_affected_users`: whose rows may differ from those of the warehouse.
2. `load_affected_events`: every event that these users' rows depend on.
3. `replace_rows`: compare their recomputed rows with the stored ones, table by table, and write the difference.

The SQL is `sql/refresh.sql`, in the same order. Needs the histories (`histories.py`), the events that were erased or
moved since (`erased_events`, `moved_events`), and the steps of the derivation, defined over `affected_event`. Between 2
and 3 the caller computes `fact` for the affected users.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.lake.erased_events import removal_since
from pipelines.lake.files import compare_checksums
from pipelines.lake.tables import Snapshot
from pipelines.reputation.differing_rows import differing_rows
from pipelines.reputation.lake_views import stored_rows
from pipelines.reputation.merged_users import Aliases, compared_keys, moved_names
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.numbers import DAY_US
from pipelines.reputation.related_events import completing_events, has_completions, users_of_completions
from pipelines.reputation.resolved_histories import ResolvedHistories
from pipelines.reputation.scopes import has_scope_scores
from pipelines.reputation.segment import ROWS
from pipelines.reputation.sorted_words import contains, distinct, union
from pipelines.reputation.sql import arrow_rows, one_row, statement
from pipelines.reputation.user_rows import UserRows, stored_form
from pipelines.reputation.warehouse_tables import SUMS

_EPOCH = date(1970, 1, 1)
_SINGLE_THREADED_USERS = 20_000
_TABLES_OF_SCORES = {"reputation", SUMS}


class Counts(NamedTuple):
    """How many users, events and events that count a warehouse has, or how many more after a refresh."""

    users: int
    events: int
    counted: int

    def plus(self, more: "Counts") -> "Counts":
        """Return the sum of both."""
        return Counts(*(mine + others for mine, others in zip(self, more, strict=True)))


@dataclass(frozen=True, slots=True)
class Replaced:
    """What a refresh changes in the tables of the users."""

    users: np.ndarray
    """The users of whom any row changed, as sorted hashes: uint64, shape (users,)."""
    user_ids: pl.Series
    """Their user_ids (String)."""
    tables: Mapping[str, pa.Table]
    """All rows of these users in each table, in their stored form."""
    scores: pl.Series
    """The user_ids (String) whose row of `reputation` or a scope, or of the sums behind it, changed or disappeared."""
    counts: Counts
    """How many more there are."""


def count_all(connection: duckdb.DuckDBPyConnection) -> Counts:
    """Count what the tables of a draft hold; a refresh adds the change that `replace_rows` returns."""
    return Counts(*one_row(connection.execute(statement("count_users_and_events"))))


def create_affected_event(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the empty table `affected_event`, which the steps are defined over."""
    connection.execute(statement("refresh_affected_event"))


def erased_events(
    connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, since_version: int, since_erasures: int
) -> pa.Table:
    """Return the events (ROWS) that an erasure or a withdrawal removed since the warehouse was derived.

    since_version, since_erasures: lake version of the warehouse, and number of erasures and withdrawals applied then.
    Raises like `removal_since`.
    """
    erased = removal_since(snapshot, since_version, since_erasures).removed
    if not len(erased):
        return ROWS.empty_table()
    with arrow_rows(connection, erased):
        rows = statement("refresh_history_rows", source="arrow_rows")
        return connection.sql(rows).to_arrow_table().cast(ROWS)


def moved_events(
    connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, policy: EffectivePolicy, before: Aliases, after: Aliases
) -> pa.Table:
    """Return the events (ROWS, as the lake has them) that merges since `before` removed from one user, for another.

    Scans the lake if there was such a merge.
    """
    names = moved_names(before, after)
    if not names:
        return ROWS.empty_table()
    keys = compared_keys(policy, before, after)
    connection.execute("SET VARIABLE moved_names = ?", [names])
    connection.execute("SET VARIABLE compared_keys = ?", [keys])
    compare_checksums(snapshot.files.get("events", ()))
    stored = stored_rows(connection, "events", snapshot)
    rows = statement("refresh_history_rows", source=f"({stored}) AS stored")
    return connection.sql(statement("moved_events", rows=rows)).to_arrow_table().cast(ROWS)


def find_affected_users(
    connection: duckdb.DuckDBPyConnection,
    histories: ResolvedHistories,
    policy: EffectivePolicy,
    since: tuple[int, int],
    as_of_us: int,
    changed: pa.Table,
) -> np.ndarray:
    """Return the users whose rows may differ from the warehouse's, as sorted hashes: uint64, shape (users,).

    A user is affected by an event that became known, through a commit or because as_of passed its time, and by an
    event that crossed the edge of a window, expired, was erased or moved to another user by a merge. A completion
    affects all users with events at its key, and so does an erased one; nothing else of one user affects another.

    since: lake version and as_of (microseconds since 1970) of the warehouse.
    changed: the result of `changed_events`.
    A hash stands for all users who share it.
    """
    version, since_us = since
    users = histories.changed_users(
        version, [(since_us, as_of_us), *_edge_crossings(policy, since_us, as_of_us)], as_of_us
    )
    users = union(users, changed["user_hash"].to_numpy())
    return union(users, users_of_completions(connection, histories, changed)) if has_completions(policy) else users


def due_days(policy: EffectivePolicy, since_us: int, as_of_us: int) -> list[date]:
    """Return the days whose points from time became due between two moments, or left a window; none for most refreshes.

    Such points are of the start of a UTC day.
    """
    if not policy.has_time_points:
        return []
    days = range(-(-since_us // DAY_US), -(-as_of_us // DAY_US))
    return sorted({_EPOCH + timedelta(days=day - window) for day in days for window in (0, *policy.rules.windows_days)})


def users_due(connection: duckdb.DuckDBPyConnection, days: list[date]) -> np.ndarray:
    """Return the users with points from time on one of some days, as sorted hashes.

    Reads the first day of every user, once a day; all changes have to be written, and the policy defined (`steps.py`).
    """
    return np.sort(connection.execute(statement("time_due"), [days]).fetchnumpy()["user_hash"])


def changed_events(
    histories: ResolvedHistories,
    policy: EffectivePolicy,
    since: tuple[int, int],
    as_of_us: int,
    removed: pa.Table,
    moved: pa.Table,
) -> pa.Table:
    """Return the events (ROWS) that were erased since a warehouse, or moved to another user by a merge.

    Also those that became known, if events of one user matter to others: where the policy has completions, or raters
    have weights.

    since, as_of_us: as of `find_affected_users`.
    removed: events (ROWS) that users no longer have. moved: those that they have from another user.
    """
    found = [removed, moved]
    if has_completions(policy) or policy.rules.raters is not None:
        found.append(histories.events_after(since[0], since[1], as_of_us))
    return pa.concat_tables(found)


def set_threads_for(connection: duckdb.DuckDBPyConnection, users: int) -> None:
    """Let the next statements run in one thread if they are about few users.

    DuckDB divides a table among threads in parts of 122,880 rows. For less, their coordination takes a tenth of the CPU
    time of a refresh, and no time is gained. Another number of threads waits for what runs in those that it ends, so it
    is not set back after a refresh.
    """
    connection.execute("SET threads = 1" if users <= _SINGLE_THREADED_USERS else "RESET threads")


def load_affected_events(
    connection: duckdb.DuckDBPyConnection,
    histories: ResolvedHistories,
    policy: EffectivePolicy,
    users: np.ndarray,
    removed: pa.Table,
) -> np.ndarray:
    """Fill `affected_event` with every event that the rows of users (sorted hashes) depend on, and `affected_user`.

    The users of removed events (ROWS) are among the latter. No row is computed for those without other events, so
    `replace_rows` removes theirs. Returns all of them, as sorted hashes.
    """
    create_affected_event(connection)
    users = union(users, removed["user_hash"].to_numpy())  # some were deferred
    events = histories.events_of(users)
    _load(connection, events)
    with arrow_rows(connection, removed):
        connection.execute(statement("refresh_affected_user"))
    if has_completions(policy):
        _load(connection, completing_events(connection, histories, events, users))
    return users


def _load(connection: duckdb.DuckDBPyConnection, events: pa.Table) -> None:
    with arrow_rows(connection, events):
        connection.execute(statement("refresh_load_events"))


def keys_read(policy: EffectivePolicy) -> set[str]:
    """Return the metadata keys that the steps read."""
    rules, keys = policy.rules, (edition.rules.metadata_keys for edition in policy.editions)
    return {rules.retraction.target, rules.correction.target}.union(*keys)


def replace_rows(
    connection: duckdb.DuckDBPyConnection, stored: UserRows, users: np.ndarray, tables: Mapping[str, str]
) -> Replaced:
    """Compare each table's query for the affected users with their stored rows; return what to store instead.

    users: the result of `load_affected_events`.
    tables: the query of each table by its name, restricted to `affected_user`.
    Rows of users without a difference are not returned.
    """
    rows, differences = dict[str, pa.Table](), dict[str, pa.Table]()
    for name, query in tables.items():
        before = stored.rows_of(name, users)
        columns = stored_form(stored.columns[name])
        connection.execute(statement("refresh_recomputed", columns=columns, query=query))
        rows[name] = connection.sql("FROM recomputed").to_arrow_table().cast(before.schema)
        differences[name] = differing_rows(before, rows[name])
    return _replaced(rows, differences)


def _replaced(rows: Mapping[str, pa.Table], differences: Mapping[str, pa.Table]) -> Replaced:
    changed = distinct(np.concatenate([table["user_hash"].to_numpy() for table in differences.values()]))
    scores = [table for name, table in differences.items() if name in _TABLES_OF_SCORES or has_scope_scores(name)]
    of_changed = {name: table.filter(_is_of(changed, table)) for name, table in rows.items()}
    return Replaced(changed, _user_ids(differences.values()), of_changed, _user_ids(scores), _counts(differences))


def _is_of(users: np.ndarray, rows: pa.Table) -> pa.Array:
    return pa.array(contains(users, rows["user_hash"].to_numpy()))


def _user_ids(differences: Iterable[pa.Table]) -> pl.Series:
    ids = pa.concat_tables(table.select(["user_id"]) for table in differences)["user_id"]
    return pl.Series("user_id", ids).unique()


def _counts(differences: Mapping[str, pa.Table]) -> Counts:
    """Return how many more users have a row of scores, and how many more events the days have."""
    users = sum(differences[name]["sign"].to_numpy().sum() for name in _TABLES_OF_SCORES & differences.keys())
    days = differences["user_days"]
    events, counted = (int((days["sign"].to_numpy() * days[name].to_numpy()).sum()) for name in ("events", "counted"))
    return Counts(int(users), events, counted)


def _edge_crossings(policy: EffectivePolicy, start: int, end: int) -> list[tuple[int, int]]:
    """Return the times, as ranges [start, end), of the events that left a window or expired between two moments.

    Windows contain their start, so an event leaves one after it; a penalty expires at its age exactly. All in
    microseconds since 1970.
    """
    windows = [days * DAY_US for days in policy.rules.windows_days]
    crossings = [(start - window, end - window) for window in windows]
    return crossings + [(start - age + 1, end - age + 1) for age in _expiry_ages(policy)]


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
