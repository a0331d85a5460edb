"""Explanations: every point of a user's score with its event and its reason (`explainable`)."""

from datetime import datetime

import duckdb
import polars as pl

from pipelines.reputation.policy import EffectivePolicy, Policy
from pipelines.reputation.policy.decay import SCORE_DIGITS
from pipelines.reputation.sql import statement
from pipelines.reputation.steps import define_steps
from pipelines.reputation.views import bounded, exact, in_units, sums, units

_ONE = {
    "among": "user_id = getvariable('explained_user')",
    "users": "SELECT CAST(getvariable('explained_user') AS VARCHAR) AS user_id",
}
_ALL = {"among": "true", "users": "SELECT DISTINCT user_id FROM contribution"}
_KEYS = ["event_time", "event_id", "action_type", "emission_no"]


def explain(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    user_id: str,
    as_of: datetime,
    known_at: datetime | None = None,
) -> pl.DataFrame:
    """Return the contributions of a user's events, in the order of events.

    Columns: event_time, event_id, action_type, emission_no (from 0; null without a rule), policy_version, reason, rule
    (the cap or gate that decided, by its name in the policy), related_event_id (the retraction that withdrew the event;
    the event that a retraction or correction names), points (before caps and decay), rating, earned, score (running).
    `earned` adds up to the all-time score exactly: rows with the reasons `start`, `bounds` (floor and ceiling) and
    `hidden` contain the part of the score that no event earned, if any. Where points decay, it is what an event added
    to the rounded total of the events before it, so that no rounding is left over.
    A connection needs the views `events` and, for known_at, `commits`.
    """
    connection.execute("SET VARIABLE explained_user = ?", [user_id])
    in_force = define_steps(connection, policy, as_of, known_at, _source(connection, policy.at(as_of)))
    return connection.sql(statement("explanation", **_ONE, **_fragments(in_force))).pl().drop("user_id")


def explain_all(
    connection: duckdb.DuckDBPyConnection, policy: Policy, as_of: datetime, known_at: datetime | None = None
) -> pl.DataFrame:
    """Return the contributions of every user with an event before as_of: columns of `explain`, after `user_id`."""
    in_force = define_steps(connection, policy, as_of, known_at)
    return connection.sql(statement("explanation", **_ALL, **_fragments(in_force))).pl()


def explain_change(
    connection: duckdb.DuckDBPyConnection, policy: Policy, user_id: str, since: datetime, until: datetime
) -> pl.DataFrame:
    """Return the contributions that differ between two moments: added, removed or expired.

    Columns: those that identify an emission, `reason_before`, `reason`, `related_event_id`, `earned_before`,
    `earned` and `change`; the changes add up to the difference of the two all-time scores.
    """
    before, after = (explain(connection, policy, user_id, as_of) for as_of in (since, until))
    named = {"reason": "reason_before", "earned": "earned_before"}
    marks = pl.when(pl.col("event_id").is_null()).then(pl.col("reason")).alias("mark")
    left = before.with_columns(marks).select(*_KEYS, "mark", *named).rename(named)
    right = after.with_columns(marks).select(*_KEYS, "mark", "related_event_id", *named)
    joined = right.join(left, on=[*_KEYS, "mark"], how="full", nulls_equal=True, coalesce=True)
    amounts = pl.col("earned").fill_null(0), pl.col("earned_before").fill_null(0)
    return (
        joined.with_columns(*amounts)
        .with_columns(change=pl.col("earned") - pl.col("earned_before"))
        .filter((pl.col("change") != 0) | pl.col("reason").ne_missing(pl.col("reason_before")))
        .sort(*_KEYS, "mark", nulls_last=True)
        .drop("mark")
    )


def _source(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> str:
    """Return the steps' source: the user's events, or all events where a completion rule needs other users'."""
    if any(edition.rules.completion for edition in policy.editions):
        return "events"
    connection.execute(statement("explained_event"))
    return "explained_event"


def _fragments(policy: EffectivePolicy) -> dict[str, str]:
    rules = policy.rules
    hidden = units(rules.status.shown, policy) if rules.status.shown is not None else bounded("total", policy)
    return {
        "running_sum": in_units(sums(policy, over=" OVER so_far"), policy),
        "start": units(rules.score.start, policy),
        "bounded": bounded("total", policy),
        "hidden": hidden,
        "points": f"CASE WHEN micro_points IS NOT NULL THEN {exact('micro_points', policy.score_digits)} END",
        "rating": "CAST(micro_rating AS DOUBLE) / 1e6",
        "earned": _exactly("earned", policy),
        "running": _exactly("running", policy),
    }


def _exactly(total: str, policy: EffectivePolicy) -> str:
    """Return a total in the unit of `units` as an exact number, including where points decay."""
    if not policy.decays:
        return exact(total, policy.score_digits)
    return f"CAST({total} AS DECIMAL({38 - SCORE_DIGITS}, 0)) * 0.{'0' * (SCORE_DIGITS - 1)}1"
