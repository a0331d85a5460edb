"""The views of a reputation: all time and the last N days, side by side in one row a user.

Owns the columns of `reputation`, and how exact sums become numbers to show. `events` counts the events that count:
those that a rule of the policy is about and nothing denied; a cap or an expired penalty takes points away, not the
event. The others are in `user_days.events`, by reason in `trends_reasons`, and one by one in an explanation.
"""

from dataclasses import dataclass

from pipelines.reputation.measures import tally_columns, value
from pipelines.reputation.policy import InForce
from pipelines.reputation.policy.numbers import DAY_US, MICRO_DIGITS, Number, micro
from pipelines.reputation.sql import statement

DECAYED_DIGITS = 15


@dataclass(frozen=True, slots=True)
class View:
    """One view: its name, and its length in microseconds (None: all time)."""

    name: str
    window_us: int | None


def views(policy: InForce) -> list[View]:
    """Return the views of a policy, all time first."""
    return [View("all_time", None)] + [View(f"last_{days}_days", days * DAY_US) for days in policy.rules.windows_days]


def exact_type(digits: int) -> str:
    """Return the type of exact numbers with so many digits after the point: whole numbers are integers."""
    return f"DECIMAL(18, {digits})" if digits else "BIGINT"


def exact(total: str, digits: int) -> str:
    """Return SQL that turns a sum in millionths, or null, into an exact number with so many digits."""
    if digits == 0:
        return f"CAST(coalesce({total}, 0) // {10**MICRO_DIGITS} AS BIGINT)"
    return f"CAST(CAST(coalesce({total}, 0) AS DECIMAL(32, 0)) * 0.000001 AS {exact_type(digits)})"


def reputation_query(policy: InForce) -> str:
    """Return the query of `reputation`: user_id, status and the columns of every view, from `fact`."""
    tallies = [column for view in views(policy) for column in _tally(view, policy)]
    shown = [f"{sql} AS {name}" for view in views(policy) for name, sql in _shown(view, policy).items()]
    return statement("reputation", tallies=",\n        ".join(tallies), shown=",\n    ".join(shown))


def view_columns(policy: InForce) -> list[str]:
    """Return the columns that every view has, without the view's name before them."""
    return ["score", "events", *policy.rules.all_measures, "rating_count"]


def _tally(view: View, policy: InForce) -> list[str]:
    """Return the exact sums of a view; a window is [as_of - N x 86,400 s, as_of)."""
    within = "true" if view.window_us is None else f"t >= getvariable('as_of') - {view.window_us}"
    columns = [
        f"CAST(coalesce(sum(earned) FILTER ({within}), 0) AS HUGEINT) AS {view.name}_earned",
        f"count(*) FILTER ({within} AND counted) AS {view.name}_count",
        f"count(rating) FILTER ({within}) AS {view.name}_ratings",
    ]
    for name, measure in policy.rules.all_measures.items():
        columns += tally_columns(f"{view.name}_{name}", measure, within)
    return columns


def _shown(view: View, policy: InForce) -> dict[str, str]:
    """Return the columns of a view with their SQL: a sum over nothing is 0, a mean over nothing is null."""
    name = view.name
    measures = {key: value(f"{name}_{key}", measure) for key, measure in policy.rules.all_measures.items()}
    return {
        f"{name}_score": _hidden(_score(view, policy), policy, _points(policy.rules.status.shown, policy)),
        f"{name}_events": f"{name}_count",
        **{f"{name}_{key}": _hidden(sql, policy, "NULL") for key, sql in measures.items()},
        f"{name}_rating_count": f"{name}_ratings",
    }


def _hidden(sql: str, policy: InForce, instead: str) -> str:
    """Return what is shown of a user whom a suspension hides."""
    if policy.rules.status.rule != "hide":
        return sql
    return f"CASE WHEN suspended.user_id IS NULL THEN {sql} ELSE {instead} END"


def _score(view: View, policy: InForce) -> str:
    total = f"{view.name}_earned"
    if view.window_us is None:
        total = bounded(f"{total} + {units(policy.rules.score.start, policy)}", policy)
    return _in_points(total, policy)


def bounded(total: str, policy: InForce) -> str:
    """Return an all-time total, start included, between the policy's bounds."""
    score = policy.rules.score
    if score.floor is not None:
        total = f"greatest({total}, {units(score.floor, policy)})"
    if score.ceiling is not None:
        total = f"least({total}, {units(score.ceiling, policy)})"
    return f"({total})"


def _points(number: Number | None, policy: InForce) -> str:
    return "NULL" if number is None else _in_points(units(number, policy), policy)


def units(number: Number, policy: InForce) -> str:
    """Return a number of points in the unit of `earned`."""
    return f"CAST({micro(number) * 10 ** (DECAYED_DIGITS - MICRO_DIGITS if policy.decays else 0)} AS HUGEINT)"


def _in_points(total: str, policy: InForce) -> str:
    """Return a sum of `earned` as the number to show: exact, or a float where points decay."""
    return (
        f"CAST(CAST({total} AS HUGEINT) AS DOUBLE) / 1e{DECAYED_DIGITS}"
        if policy.decays
        else exact(total, policy.score_digits)
    )
