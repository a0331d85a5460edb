"""The views of a reputation: all time and the last N days, side by side in one row a user.

Owns the columns of `reputation`, and how exact sums become numbers to show.
"""

from dataclasses import dataclass

from pipelines.reputation.measures import tally_columns, value
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.numbers import MICRO_DIGITS
from pipelines.reputation.sql import statement

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class View:
    """One view: its name, and its length in microseconds (None: all time)."""

    name: str
    window_us: int | None


def views(policy: Policy) -> list[View]:
    """Return the views of a policy, all time first."""
    return [View("all_time", None)] + [View(f"last_{days}_days", days * _DAY_US) for days in policy.windows_days]


def exact_type(digits: int) -> str:
    """Return the type of exact numbers with so many digits after the point: whole numbers are integers."""
    return f"DECIMAL(18, {digits})" if digits else "BIGINT"


def exact(total: str, digits: int) -> str:
    """Return SQL that turns a sum in millionths, or null, into an exact number with so many digits."""
    if digits == 0:
        return f"CAST(coalesce({total}, 0) // {10**MICRO_DIGITS} AS BIGINT)"
    return f"CAST(CAST(coalesce({total}, 0) AS DECIMAL(32, 0)) * 0.000001 AS {exact_type(digits)})"


def reputation_query(policy: Policy) -> str:
    """Return the query of `reputation`: user_id, status and the columns of every view, from `fact`."""
    tallies = [column for view in views(policy) for column in _tally(view, policy)]
    shown = [f"{sql} AS {name}" for view in views(policy) for name, sql in _shown(view, policy).items()]
    return statement("reputation", tallies=",\n        ".join(tallies), shown=",\n    ".join(shown))


def view_columns(policy: Policy) -> list[str]:
    """Return the columns that every view has, without the view's name before them."""
    return ["score", "events", *policy.all_measures, "rating_count"]


def _tally(view: View, policy: Policy) -> list[str]:
    """Return the exact sums of a view; a window is [as_of - N x 86,400 s, as_of)."""
    within = "true" if view.window_us is None else f"t >= getvariable('as_of') - {view.window_us}"
    columns = [
        f"sum(granted) FILTER ({within}) AS {view.name}_micro",
        f"count(*) FILTER ({within} AND counted) AS {view.name}_count",
        f"count(rating) FILTER ({within}) AS {view.name}_ratings",
    ]
    for name, measure in policy.all_measures.items():
        columns += tally_columns(f"{view.name}_{name}", measure, within)
    return columns


def _shown(view: View, policy: Policy) -> dict[str, str]:
    """Return the columns of a view with their SQL: a sum over nothing is 0, a mean over nothing is null."""
    name = view.name
    return {
        f"{name}_score": exact(f"{name}_micro", policy.score_digits),
        f"{name}_events": f"{name}_count",
        **{f"{name}_{key}": value(f"{name}_{key}", measure) for key, measure in policy.all_measures.items()},
        f"{name}_rating_count": f"{name}_ratings",
    }
