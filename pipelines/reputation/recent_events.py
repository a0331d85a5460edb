"""What happened to users, each since a moment of its own: events that became known, left a window, or expired.

It is what can have changed what is shown of a user, whether it did or not: an event that earned nothing is there, too.
`shown.py` computes what each one did. The events are read from the histories, at the cost of the users asked for, or,
where no histories follow the lake, from its files.
"""

from collections.abc import Callable, Sequence

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.contract.change_causes import LEFT_THE_WINDOW, NEW_EVENT, OF_ROLES, PENALTY_EXPIRED
from pipelines.reputation.merged_users import Aliases, aliases_in, load_aliases, resolved_events
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.numbers import DAY_US
from pipelines.reputation.resolved_histories import ResolvedHistories
from pipelines.reputation.segment import FACTS
from pipelines.reputation.sql import arrow_rows, statement
from pipelines.reputation.steps import epoch_us
from pipelines.reputation.warehouse_file import Info

SINCE = pl.Schema({"user_id": pl.String, "lake_version": pl.Int64, "as_of_us": pl.Int64})
"""Users, each with the lake version and the moment (microseconds since 1970) after which to look."""
RECENT = pl.Schema({"user_id": pl.String, "t": pl.Int64, "cause": pl.String, "event_id": pl.String})
"""What happened to users: when the event was (microseconds since 1970), and why it matters now."""
RecentEvents = Callable[[pl.DataFrame], pl.DataFrame]
"""Returns what happened (RECENT) to users since the moments (SINCE)."""


def recent_in_histories(
    connection: duckdb.DuckDBPyConnection,
    histories: ResolvedHistories,
    policy: EffectivePolicy,
    as_of_us: int,
    since: pl.DataFrame,
) -> pl.DataFrame:
    """Return what happened (RECENT) to users until as_of (microseconds since 1970).

    histories: that follow the lake to the version that is looked at. since: a row (SINCE) of each user.
    """
    with arrow_rows(connection, since.to_arrow()):
        users = connection.execute(statement("recent_users")).fetchnumpy()
    shifts = _window_shifts(policy) + _expiry_shifts(policy)

    def is_wanted(hashes: np.ndarray, times: np.ndarray, versions: np.ndarray) -> np.ndarray:
        # A former user_id alone brings the events of its person, who was not asked for: the join leaves them out.
        at = np.minimum(np.searchsorted(users["user_hash"], hashes), len(users["user_hash"]) - 1)
        start = users["as_of_us"][at]
        wanted = (versions > users["lake_version"][at]) | (times >= start)
        for shift in shifts:
            wanted |= (times >= start - shift) & (times < as_of_us - shift)
        return wanted & (times < as_of_us)

    rows = histories.facts_where(users["user_hash"], is_wanted)
    return _with_causes(rows, policy, as_of_us, since)


def recent_in_lake(
    connection: duckdb.DuckDBPyConnection,
    tables: tuple[str, str],
    known: Aliases,
    policy: EffectivePolicy,
    as_of_us: int,
    since: pl.DataFrame,
) -> pl.DataFrame:
    """Return what `recent_in_histories` does, by a scan of the lake.

    tables: tables, views, or queries in parentheses, of events, and of the version of each batch_id.
    """
    connection.execute("SET VARIABLE recent_until = ?", [as_of_us])
    connection.execute("SET VARIABLE recent_shifts = ?", [_window_shifts(policy) + _expiry_shifts(policy)])
    load_aliases(connection, known)
    events, commits = tables
    with arrow_rows(connection, since.to_arrow()):
        source = f"({resolved_events(known, events)})" if known else events
        rows = connection.sql(statement("recent_events", source=source, commits=commits)).to_arrow_table()
    return _with_causes(rows, policy, as_of_us, since)


def recent_in_warehouse(connection: duckdb.DuckDBPyConnection, info: Info, since: pl.DataFrame) -> pl.DataFrame:
    """Return what happened to users until the moment of a warehouse, by a scan of the lake's views in it."""
    in_force, known = info.policy.at(info.as_of), aliases_in(connection)
    return recent_in_lake(connection, ("events", "commits"), known, in_force, epoch_us(info.as_of), since)


def event_causes(policy: EffectivePolicy) -> set[str]:
    """Return which causes events can have under a policy."""
    shifts = {LEFT_THE_WINDOW: _window_shifts(policy), PENALTY_EXPIRED: _expiry_shifts(policy)}
    return {NEW_EVENT, *_causes_of_roles(policy).values(), *(cause for cause, found in shifts.items() if found)}


def _with_causes(rows: pa.Table, policy: EffectivePolicy, as_of_us: int, since: pl.DataFrame) -> pl.DataFrame:
    facts = pl.DataFrame(rows.select(FACTS)).lazy().join(since.lazy(), on="user_id")
    is_new = (pl.col("version") > pl.col("lake_version")) | (pl.col("t") >= pl.col("as_of_us"))
    cause = (
        pl.when(is_new)
        .then(pl.col("action_type").replace_strict(_causes_of_roles(policy), default=NEW_EVENT, return_dtype=pl.String))
        .when(_expired(policy, as_of_us))
        .then(pl.lit(PENALTY_EXPIRED))
        .when(_crossed(_window_shifts(policy), as_of_us))
        .then(pl.lit(LEFT_THE_WINDOW))
    )
    named = facts.filter(pl.col("t") < as_of_us).with_columns(cause=cause)
    return named.filter(pl.col("cause").is_not_null()).select(RECENT.names()).cast(RECENT).collect()


def _crossed(shifts: Sequence[int], as_of_us: int) -> pl.Expr:
    """Return whether an event became older than one of some ages."""
    t = pl.col("t")
    crossed = [(t >= pl.col("as_of_us") - shift) & (t < as_of_us - shift) for shift in shifts]
    return pl.any_horizontal(pl.lit(False), *crossed)  # noqa: FBT003


def _expired(policy: EffectivePolicy, as_of_us: int) -> pl.Expr:
    expiring = [pl.col("action_type").eq(action) & _crossed([shift], as_of_us) for action, shift in _expiring(policy)]
    return pl.any_horizontal(pl.lit(False), *expiring)  # noqa: FBT003


def _window_shifts(policy: EffectivePolicy) -> list[int]:
    """Return by how much the time of an event is before as_of when it is still in a window: it contains its start."""
    return [days * DAY_US for days in policy.rules.windows_days]


def _expiry_shifts(policy: EffectivePolicy) -> list[int]:
    """Return the same of penalties, which expire at their age exactly."""
    return sorted({shift for _, shift in _expiring(policy)})


def _expiring(policy: EffectivePolicy) -> set[tuple[str, int]]:
    """Return the types of actions whose penalties expire, each with the shift."""
    return {
        (action, emission.penalties_expire_after_days * DAY_US - 1)
        for edition in policy.editions
        for action, rules in edition.rules.actions.items()
        for emission in rules.emissions
        if emission.penalties_expire_after_days
    }


def _causes_of_roles(policy: EffectivePolicy) -> dict[str, str]:
    """Return the cause by the type of action, for those that are rulings."""
    return {action: OF_ROLES[role] for action, role in policy.rules.roles.items()}
