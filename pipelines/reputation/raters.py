"""Raters' weights: how much each rater's ratings count on each day, by who rated whom before it (EigenTrust).

Owns when weights are computed and where they are: in the temporary table `rater_weight`, which step 15 joins; the
warehouse stores it as `rater_weights`. The formula is `sql/raters.sql`, whole numbers throughout. The weights of a day
come from the ratings given before the day begins, and not retracted by then, so neither as_of nor what is decided later
changes them: only a late event does (`first_outdated_day`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Iterable
from datetime import date, timedelta
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.reputation.merged_users import Aliases
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.actions import Rating
from pipelines.reputation.policy.numbers import DAY_US, micro
from pipelines.reputation.policy.raters import Raters
from pipelines.reputation.sql import arrow_rows, one_row, statement

_SCALE = pa.schema([("action_type", pa.string()), ("minimum", pa.int64()), ("maximum", pa.int64())])
_PARTS = ("raters_given", "raters_numbers", "raters_opinions", "raters_seeds")


class EarlierWeights(NamedTuple):
    """The weights of all days before one, from a warehouse of the same policy and history up to there."""

    before: date
    rows: pa.Table
    """Columns day, user_id, weight."""


def define_trust(connection: duckdb.DuckDBPyConnection) -> None:
    """Define the macros `trust_rounds` and `trust_weight`."""
    for name in ("trust_rounds", "trust_weight"):
        connection.execute(statement(f"macro_{name}"))


def define_scales(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> None:
    """Create `opinion_scale`: the lowest and the highest rating of each action_type that has ratings, in millionths."""
    with arrow_rows(connection, _scales(policy)):
        connection.execute(statement("policy_table", name="opinion_scale"))


def set_seeds(connection: duckdb.DuckDBPyConnection, raters: Raters, known: Aliases) -> None:
    """Set the seeds of a policy, under current user_ids where those of the ratings are (`resolved_events`)."""
    seeds = {known.at_key(raters.key, name) for name in raters.seeds}
    connection.execute("SET VARIABLE trust_seeds = ?", [sorted(seeds)])


def weight_of_rating(policy: EffectivePolicy) -> str:
    """Return SQL of what a rating weighs, in millionths: its own weight, that of its rater, or their product."""
    if policy.rules.raters is None:
        return "rating_weight"
    of_rater = statement("raters_weight")
    return statement("weight_of_both", of_rater=of_rater) if policy.reads_weights else of_rater


def compute_weights(
    connection: duckdb.DuckDBPyConnection,
    policy: EffectivePolicy,
    steps: Iterable[str],
    earlier: EarlierWeights | None = None,
) -> None:
    """Fill `rater_weight` for every day with ratings; each day that is computed costs the rounds over all opinions.

    steps: the statements that define the steps up to `emitted` over all events, without corrections.
    earlier: weights that need not be computed again; None: all are computed.
    The tables, variables and macros of the policy must exist.
    """
    define_trust(connection)
    connection.execute(statement("raters_no_weights"))
    for step in steps:
        connection.execute(step)
    define_scales(connection, policy)
    for part in _PARTS:
        connection.execute(statement(part))
    whole = "true" if policy.rules.correction.actions else "false"
    of_day = statement("raters_of_day", whole=whole, opinions=statement("raters_opinions_in_force"))
    days = [day for (day,) in connection.execute(statement("raters_days")).fetchall()]
    if earlier is not None:
        with arrow_rows(connection, earlier.rows):
            connection.execute(statement("raters_earlier", whole=whole))
        days = [day for day in days if day >= earlier.before or day == days[-1]]
    for day in days:
        _weigh(connection, of_day, day)


def _weigh(connection: duckdb.DuckDBPyConnection, of_day: str, day: date) -> None:
    """Fill `rater_weight` for a day."""
    connection.execute("SET VARIABLE weighed_day = CAST(? AS DATE)", [day])
    connection.execute(of_day)


def use_stored_weights(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, steps: Iterable[str]) -> None:  # noqa: ARG001 - as compute_weights
    """Fill `rater_weight` from the warehouse of a connection."""
    connection.execute(statement("raters_no_weights"))
    connection.execute(statement("raters_stored_weights"))


def first_outdated_day(
    connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, changed: pa.Table, removed: pa.Table
) -> date | None:
    """Return the first day whose weights in a warehouse are outdated; None if there is none.

    A rating needs the weight of its rater on its day, and changes all days after it, like a retraction. The newest day
    with weights has them of all users, so nothing changes for a rating that is added to it; one that is removed from it
    may have been the last.

    changed: the events (ROWS) that were added or removed. removed: those of them that were removed.
    """
    days = _days_of_opinions(policy, changed)
    (newest_us,) = one_row(connection.execute("SELECT epoch_us(max(day)) FROM rater_weights"))
    are_of_newest = not len(days) or (newest_us is not None and bool(np.all(days == newest_us // DAY_US)))
    if are_of_newest and not len(_days_of_opinions(policy, removed)):
        return None
    return date(1970, 1, 1) + timedelta(days=int(days.min()))


def _days_of_opinions(policy: EffectivePolicy, events: pa.Table) -> np.ndarray:
    """Return the day of each rating and retraction, counted from 1970."""
    actions = pa.array([*_rated(policy), *policy.rules.retraction.actions], pa.large_string())
    return events.filter(pc.is_in(events["action_type"], actions))["t"].to_numpy() // DAY_US


def earlier_weights(connection: duckdb.DuckDBPyConnection, before: date = date.max) -> EarlierWeights:
    """Return the weights of a warehouse on the days before one."""
    rows = connection.sql(statement("raters_stored_before"), params=[before]).to_arrow_table()
    return EarlierWeights(before, rows)


def _rated(policy: EffectivePolicy) -> dict[str, Rating]:
    """Return the ratings of a policy by action_type; of several versions, the last that has one."""
    actions = {name: action for edition in policy.editions for name, action in edition.rules.actions.items()}
    return {name: action.rating for name, action in actions.items() if action.rating is not None}


def _scales(policy: EffectivePolicy) -> pa.Table:
    """Return the scale of each action_type: that of constant ratings spans all of them."""
    rated = _rated(policy)
    constant = [micro(rating.fixed) for rating in rated.values() if rating.fixed is not None]
    bounds = {name: _bounds(rating, constant) for name, rating in rated.items()}
    rows = [{"action_type": name, "minimum": low, "maximum": high} for name, (low, high) in bounds.items()]
    return pa.Table.from_pylist(rows, _SCALE)


def _bounds(rating: Rating, constant: list[int]) -> tuple[int, int]:
    if rating.fixed is not None:
        return min(constant), max(constant)
    lowest, highest = rating.bounds
    return micro(lowest), micro(highest)
