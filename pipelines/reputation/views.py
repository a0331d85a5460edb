"""The views of a reputation: all time and the last N days, side by side in one row per user.

Owns the columns of `reputation`, and how exact sums become the numbers shown. `events` is the number of events that
count: those that a rule of the policy applies to and no rule denied. A cap or an expired penalty removes points, not
the event. `user_days.events` also counts the others, `trends_reasons` counts them by reason, and an explanation lists
them.
"""

from dataclasses import dataclass

from pipelines.reputation.measures import tally_columns, value
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.numbers import DAY_US, MICRO_DIGITS, Number, micro
from pipelines.reputation.sql import statement

DECAYED_DIGITS = 15


@dataclass(frozen=True, slots=True)
class View:
    """One view: its name, and its length in microseconds (None: all time)."""

    name: str
    window_us: int | None


def views(policy: EffectivePolicy) -> list[View]:
    """Return the views of a policy, all time first."""
    return [View("all_time", None)] + [View(f"last_{days}_days", days * DAY_US) for days in policy.rules.windows_days]


def exact_type(digits: int) -> str:
    """Return the SQL type of exact numbers with `digits` digits after the point; BIGINT for none."""
    return f"DECIMAL(18, {digits})" if digits else "BIGINT"


def exact(total: str, digits: int) -> str:
    """Return SQL that converts a sum in millionths, or null, to an exact number with `digits` decimals."""
    if digits == 0:
        return f"CAST(coalesce({total}, 0) // {10**MICRO_DIGITS} AS BIGINT)"
    return f"CAST(CAST(coalesce({total}, 0) AS DECIMAL(32, 0)) * 0.000001 AS {exact_type(digits)})"


def reputation_query(policy: EffectivePolicy) -> str:
    """Return the query of `reputation`: user_id, status and the columns of every view, from `fact`."""
    tallies = [column for view in views(policy) for column in _tally(view, policy)]
    shown = [f"{sql} AS {name}" for view in views(policy) for name, sql in _shown(view, policy).items()]
    return statement("step_17_reputation", tallies=",\n        ".join(tallies), shown=",\n    ".join(shown))


def view_columns(policy: EffectivePolicy) -> list[str]:
    """Return the columns of every view, without the prefix of its name."""
    return ["score", "events", *policy.rules.all_measures, "rating_count"]


def _tally(view: View, policy: EffectivePolicy) -> list[str]:
    """Return the aggregates of a view, exact sums; a window is [as_of - N x 86,400 s, as_of)."""
    within = "true" if view.window_us is None else f"t >= getvariable('as_of') - {view.window_us}"
    columns = [
        f"CAST(coalesce(sum(earned) FILTER ({within}), 0) AS HUGEINT) AS {view.name}_earned",
        f"count(*) FILTER ({within} AND counted) AS {view.name}_count",
        f"count(rating) FILTER ({within}) AS {view.name}_ratings",
    ]
    for name, measure in policy.rules.all_measures.items():
        columns += tally_columns(f"{view.name}_{name}", measure, within)
    return columns


def _shown(view: View, policy: EffectivePolicy) -> dict[str, str]:
    """Return the columns of a view with their SQL: the sum of no events is 0, the mean of no ratings is null."""
    name = view.name
    measures = {key: value(f"{name}_{key}", measure) for key, measure in policy.rules.all_measures.items()}
    return {
        f"{name}_score": _hidden(_score(view, policy), policy, _points(policy.rules.status.shown, policy)),
        f"{name}_events": f"{name}_count",
        **{f"{name}_{key}": _hidden(sql, policy, "NULL") for key, sql in measures.items()},
        f"{name}_rating_count": f"{name}_ratings",
    }


def _hidden(sql: str, policy: EffectivePolicy, instead: str) -> str:
    """Return SQL that shows `instead` for a user whom a suspension hides."""
    if policy.rules.status.rule != "hide":
        return sql
    return f"CASE WHEN suspended.user_id IS NULL THEN {sql} ELSE {instead} END"


def _score(view: View, policy: EffectivePolicy) -> str:
    total = f"{view.name}_earned"
    if view.window_us is None:
        total = bounded(f"{total} + {units(policy.rules.score.start, policy)}", policy)
    return _in_points(total, policy)


def bounded(total: str, policy: EffectivePolicy) -> str:
    """Return an all-time total (start included) limited to the policy's floor and ceiling."""
    score = policy.rules.score
    if score.floor is not None:
        total = f"greatest({total}, {units(score.floor, policy)})"
    if score.ceiling is not None:
        total = f"least({total}, {units(score.ceiling, policy)})"
    return f"({total})"


def _points(number: Number | None, policy: EffectivePolicy) -> str:
    return "NULL" if number is None else _in_points(units(number, policy), policy)


def units(number: Number, policy: EffectivePolicy) -> str:
    """Return a number of points in the unit of `earned`."""
    return f"CAST({micro(number) * 10 ** (DECAYED_DIGITS - MICRO_DIGITS if policy.decays else 0)} AS HUGEINT)"


def _in_points(total: str, policy: EffectivePolicy) -> str:
    """Return a sum of `earned` as the number shown: exact, or a float where points decay."""
    return (
        f"CAST(CAST({total} AS HUGEINT) AS DOUBLE) / 1e{DECAYED_DIGITS}"
        if policy.decays
        else exact(total, policy.score_digits)
    )
