"""Explanations: every point of a user's score with its event and its reason (`explainable`)."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import duckdb
import polars as pl

from pipelines.reputation.level_history import contributions_with_levels
from pipelines.reputation.merged_users import Aliases, aliases_in, load_aliases, resolved_events
from pipelines.reputation.policy import EffectivePolicy, Policy
from pipelines.reputation.policy.decay import SCORE_DIGITS
from pipelines.reputation.scopes import find_value
from pipelines.reputation.sql import statement
from pipelines.reputation.steps import define_reading, define_steps
from pipelines.reputation.views import (
    View,
    bounded,
    exact,
    find_view,
    in_units,
    level_name,
    rating_columns,
    sums,
    units,
)

EXPLAINED = "explained_event"
"""The table of the explained user's events; those of other users in it complete these."""
_USER = "SELECT CAST(getvariable('explained_user') AS VARCHAR) AS user_id"
_ALL = {"among": "true", "users": "SELECT DISTINCT user_id FROM contribution"}
_WHOSE = ("user_id = getvariable('explained_user')", "list_contains(getvariable('explained_names'), user_id)")
"""The events of a user without and with former user_ids: files are skipped for a single one."""
_RATINGS = """
    SELECT event_id, CAST(rating AS DOUBLE) / 1e6 AS rating
    FROM {source}
    WHERE user_id = getvariable('explained_user') AND emission_no = 0 AND matched AND readable AND rating IS NOT NULL
    ORDER BY t, source_row, event_id
"""
_KEYS = ["event_time", "event_id", "action_type", "emission_no"]


def explain(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    user_id: str,
    as_of: datetime,
    known_at: datetime | None = None,
    view: str = "all_time",
    scope: str | None = None,
) -> pl.DataFrame:
    """Return the contributions of a user's events to the score of a view, in the order of events.

    Columns: event_time, event_id, action_type, emission_no (from 0; null without a rule), policy_version, reason, rule
    (the cap or gate that decided, by its name in the policy), related_event_id (the retraction that withdrew the event;
    the event that a retraction or correction names), points (before caps and decay), rating, earned, score (running),
    level (after the event; null below the first level, in a window, and without levels in the policy). Points from time
    have no event_id, and the name of their rule as action_type.
    `earned` adds up to the score exactly: rows with the reasons `start`, `bounds` (floor and ceiling) and `hidden`
    contain the part of the score that no event earned, if any. Where points decay, it is what an event added to the
    rounded total of the events before it, so that no rounding is left over.
    view: `all_time`, or `last_N_days`, whose events are those of its window, and which has no start and no bounds.
    user_id: a former one stands for the current one of the person.
    scope: a scope of the policy with a value, such as `city=berlin`: only the contributions there, without start and
    bounds.
    A connection needs the views `events`, `merged_users` if users were merged, and `commits` for known_at. Raises
    UsageError for a view or a scope that the policy does not have.
    """
    known, found = aliases_in(connection, known_at), policy.at(as_of)
    explained = find_view(found, view)
    if scope is not None:
        explained = replace(explained, scope=find_value(found, scope))
    load_explained_events(connection, user_id, [found], known)
    return contributions(connection, define_steps(connection, policy, as_of, known_at, EXPLAINED, known), explained)


def load_explained_events(
    connection: duckdb.DuckDBPyConnection, user_id: str, policies: Sequence[EffectivePolicy], known: Aliases
) -> set[str]:
    """Create the table EXPLAINED: a user's events, and those of others that complete them under one of the policies.

    The events are as the lake has them, under every user_id of the person; `known` are the merges of the newest moment.
    Returns the action_types of those others: of events that complete, and of those that retract or correct them.
    """
    set_explained_user(connection, user_id, known)
    load_aliases(connection, known)
    connection.execute(statement("explained_event", whose=_WHOSE[bool(known)]))
    rules = [edition.rules for policy in policies for edition in policy.editions]
    keys = {gate.key for each in rules for gate in each.completion.values()}
    if not keys:
        return set()
    corrections = {action for policy in policies for action in policy.rules.correction.actions}
    retractions = {action for policy in policies for action in policy.rules.retraction.actions}
    completions = {action for each in rules for gate in each.completion.values() for action in gate.by}
    _set_list(connection, "explained_keys", keys)
    _set_list(connection, "explained_completing", completions | corrections)
    _set_list(connection, "explained_retracting", retractions)
    sources = {"own": EXPLAINED, "events": "events"}
    if known:
        sources = {name: f"({resolved_events(known, source)})" for name, source in sources.items()}
    connection.execute(statement("explained_completions", **sources))
    return completions | corrections | retractions


def set_explained_user(connection: duckdb.DuckDBPyConnection, user_id: str, known: Aliases) -> None:
    """Name the person whose events are explained: `explained_user` is the current user_id, `explained_names` all."""
    current, *former = known.names(user_id)
    connection.execute("SET VARIABLE explained_user = ?", [current])
    connection.execute("SET VARIABLE explained_names = ?", [[current, *former]])


def contributions(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, view: View) -> pl.DataFrame:
    """Return the rows of `explain` of the user of EXPLAINED, whose steps are defined over it."""
    within = "" if view.window_us is None else f" AND t >= getvariable('as_of') - {view.window_us}"
    if view.scope is not None:
        name, value = view.scope
        connection.execute("SET VARIABLE explained_value = ?", [value])
        within += f" AND scope_{name} = getvariable('explained_value')"
    one = {"among": f"user_id = getvariable('explained_user'){within}", "users": _USER}
    return connection.sql(statement("explanation", **one, **_fragments(policy, view))).pl().drop("user_id")


def ratings_given(connection: duckdb.DuckDBPyConnection, policy: Policy, user_id: str, as_of: datetime) -> pl.DataFrame:
    """Return event_id and rating of each event of a user that gave a rating, as it came, whether it counts or not."""
    known = aliases_in(connection)
    load_explained_events(connection, user_id, [], known)
    _, source = define_reading(connection, policy, as_of, EXPLAINED, known)
    return connection.sql(_RATINGS.format(source=source)).pl()


def explain_all(
    connection: duckdb.DuckDBPyConnection, policy: Policy, as_of: datetime, known_at: datetime | None = None
) -> pl.DataFrame:
    """Return the contributions of every user with an event before as_of: columns of `explain`, after `user_id`."""
    in_force = define_steps(connection, policy, as_of, known_at, known=aliases_in(connection, known_at))
    return connection.sql(
        statement("explanation", **_ALL, **_fragments(in_force, find_view(in_force, "all_time")))
    ).pl()


def explain_change(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    user_id: str,
    since: datetime,
    until: datetime,
    view: str = "all_time",
    scope: str | None = None,
) -> pl.DataFrame:
    """Return the contributions that differ between two event times, as known now: added, removed or expired.

    Columns: those that identify an emission, `reason_before`, `reason`, `related_event_id`, `earned_before`,
    `earned` and `change`; the changes add up to the difference of the two scores of the view. `explain_shown` compares
    what was shown instead.
    """
    before, after = (explain(connection, policy, user_id, as_of, view=view, scope=scope) for as_of in (since, until))
    named = {"reason": "reason_before", "earned": "earned_before"}
    marks = pl.when(pl.col("event_time").is_null()).then(pl.col("reason")).alias("mark")
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


def _set_list(connection: duckdb.DuckDBPyConnection, variable: str, names: set[str]) -> None:
    connection.execute(f"SET VARIABLE {variable} = CAST(? AS VARCHAR[])", [sorted(names)])


def _fragments(policy: EffectivePolicy, view: View) -> dict[str, str]:
    rules = policy.rules
    bounds = bounded("total", policy) if view.has_bounds else "total"
    return {
        "running_sum": in_units(sums(policy, over=" OVER so_far"), policy),
        "start": units(rules.score.start, policy) if view.has_bounds else "CAST(0 AS HUGEINT)",
        "bounded": bounds,
        "hidden": bounds if rules.status.shown is None else units(rules.status.shown, policy),
        "points": f"CASE WHEN micro_points IS NOT NULL THEN {exact('micro_points', policy.score_digits)} END",
        "rating": "CAST(micro_rating AS DOUBLE) / 1e6",
        **_weight(policy),
        "earned": _exactly("earned", policy),
        "running": _exactly("running", policy),
        "contributions": contributions_with_levels(policy) if view.has_bounds else statement("without_levels"),
        "level": level_name(policy, "level_no"),
    }


def _weight(policy: EffectivePolicy) -> dict[str, str]:
    """Return the columns of raters' weights, from 0 to 1, and of priors; none where the policy has neither."""
    names = rating_columns(policy)
    return {
        "weighed": "".join(f"\n        {name} AS micro_{name}," for name in names),
        "unweighed": " NULL," * len(names),
        "weight": "".join(f"\n    CAST(micro_{name} AS DOUBLE) / 1e6 AS {name}," for name in names),
    }


def _exactly(total: str, policy: EffectivePolicy) -> str:
    """Return a total in the unit of `units` as an exact number, including where points decay."""
    if not policy.decays:
        return exact(total, policy.score_digits)
    return f"CAST({total} AS DECIMAL({38 - SCORE_DIGITS}, 0)) * 0.{'0' * (SCORE_DIGITS - 1)}1"
