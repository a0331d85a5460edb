"""The views of a reputation: all time and the last N days, side by side in one row per user.

Owns the columns of `reputation`, and how exact sums become the displayed numbers. `events` is the number of events that
count: those that a rule of the policy applies to and no rule denied. A cap or an expired penalty removes points, not
the event. `user_days.events` also counts the others, `trends_reasons` counts them by reason, and an explanation lists
them.

Where no points decay, a sum of `earned` is in micro-points, and the table `reputation` holds the displayed numbers.
Where they do, there is a sum for each half-life, as of its epoch (`policy/decay.py`): the table `reputation_sums` holds
the sums, and `reputation` is a view that scales them to `decayed_to`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import UsageError
from pipelines.reputation.measures import rating_weight, tally_columns, value, weighted_tally_columns
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.decay import SCORE_DIGITS, SUM_DIGITS, HalfLife
from pipelines.reputation.policy.numbers import DAY_US, MICRO_DIGITS, Number, micro
from pipelines.reputation.sql import statement


@dataclass(frozen=True, slots=True)
class View:
    """One view: its name, and its length in microseconds (None: all time)."""

    name: str
    window_us: int | None
    scope: tuple[str, str | None] | None = None
    """The scope whose contributions alone are in it, and which value of it; None stands for each value."""

    @property
    def has_bounds(self) -> bool:
        """Whether its score has the policy's start, floor and ceiling."""
        return self.window_us is None and self.scope is None


def views(policy: EffectivePolicy) -> list[View]:
    """Return the views of a policy, all time first."""
    return [View("all_time", None)] + [View(f"last_{days}_days", days * DAY_US) for days in policy.rules.windows_days]


def find_view(policy: EffectivePolicy, name: str) -> View:
    """Return a view of a policy by its name. Raises UsageError, listing the views, for an unknown one."""
    found = {view.name: view for view in views(policy)}
    if name not in found:
        raise UsageError(f"the policy {policy.name} has no view {name!r}: there are {', '.join(found)}")
    return found[name]


def exact_type(digits: int, width: int = 18) -> str:
    """Return the SQL type of exact numbers with `digits` digits after the point; BIGINT for none.

    width: all digits; 18 are enough for one user (`MAX_POINTS`), sums over users have 38.
    """
    return f"DECIMAL({width}, {digits})" if digits else "BIGINT"


def exact(total: str, digits: int) -> str:
    """Return SQL that converts a sum in millionths, or null, to an exact number with `digits` decimals."""
    if digits == 0:
        return f"CAST(coalesce({total}, 0) // {10**MICRO_DIGITS} AS BIGINT)"
    return f"CAST(CAST(coalesce({total}, 0) AS DECIMAL(32, 0)) * 0.000001 AS {exact_type(digits)})"


def summed_query(policy: EffectivePolicy) -> str:
    """Return the query of a row per user with the sums, counts and measures of every view, from `fact`."""
    tallies, columns = view_sums(policy)
    if policy.rules.levels and not policy.decays:
        tallies.append("arg_max(level_no, event_rank) AS level_no")
        columns.append("level_no")
    return statement("step_17_summed", tallies=",\n        ".join(tallies), columns=",\n    ".join(columns))


def view_sums(policy: EffectivePolicy) -> tuple[list[str], list[str]]:
    """Return the aggregates of every view over contributions, and the columns of a row of sums over these."""
    tallies = [column for view in views(policy) for column in _tally(view, policy)]
    columns = [f"{sql} AS {name}" for view in views(policy) for name, sql in _summed_columns(view, policy).items()]
    return tallies, columns


def reputation_query(policy: EffectivePolicy, summed: str | None = None) -> str:
    """Return the query of `reputation`: user_id, status, the level, if the policy has levels, and every view's columns.

    summed: a table with the rows of `summed_query`; None: compute them from `fact`.
    """
    every_view = (each for view in views(policy) for each in shown_columns(view, policy).items())
    shown = [f"{sql} AS {name}" for name, sql in (*_level(policy).items(), *every_view)]
    return statement("step_18_reputation", summed=summed or f"({summed_query(policy)})", shown=",\n    ".join(shown))


def level_columns(policy: EffectivePolicy) -> list[str]:
    """Return the columns of the level: none for a policy without levels."""
    return list(_level(policy))


def level_name(policy: EffectivePolicy, number: str) -> str:
    """Return SQL of the name of a level from SQL of its number, from 1; null for 0, and above the highest."""
    names = "".join(f" WHEN {number} THEN '{name}'" for number, name in enumerate(policy.rules.levels, 1))
    return f"CASE {number}{names} END" if names else "CAST(NULL AS VARCHAR)"


def rating_columns(policy: EffectivePolicy) -> list[str]:
    """Return the columns of contributions that ratings have beside their value: none unless the policy needs them."""
    return ["weight"] * policy.weighs_ratings + ["prior"] * policy.rules.has_global_prior


def view_columns(policy: EffectivePolicy) -> list[str]:
    """Return the columns of every view, without the prefix of its name."""
    return ["score", "events", *policy.rules.all_measures, "rating_count"]


def _tally(view: View, policy: EffectivePolicy) -> list[str]:
    """Return the aggregates of a view, exact sums; a window is [as_of - N x 86,400 s, as_of)."""
    within = "true" if view.window_us is None else f"t >= getvariable('as_of') - {view.window_us}"
    columns = [
        *(f"{total} AS {name}" for name, total in zip(_sums(view, policy), sums(policy, within), strict=True)),
        f"count(*) FILTER ({within} AND counted) AS {view.name}_count",
        f"count(rating) FILTER ({within}) AS {view.name}_ratings",
    ]
    for key, measure in policy.rules.all_measures.items():
        name, weight = f"{view.name}_{key}", rating_weight(measure, policy)
        if weight is None:
            columns += tally_columns(name, measure, within)
        else:
            columns += weighted_tally_columns(name, measure, within, weight)
    return columns


def sums(policy: EffectivePolicy, within: str = "true", over: str = "") -> list[str]:
    """Return the aggregates that sum `earned`, one for each half-life of the policy.

    within: a condition on the contributions; over: the window of a running sum, after OVER.
    """
    by_half_life = [f"{within} AND {_has(half_life)}" for half_life in policy.half_lives]
    conditions = by_half_life if len(by_half_life) > 1 else [within]
    return [f"CAST(coalesce(sum(earned) FILTER ({condition}){over}, 0) AS HUGEINT)" for condition in conditions]


def _has(half_life: HalfLife | None) -> str:
    return "half_life_us IS NULL" if half_life is None else f"half_life_us = {half_life.length_us}"


def _sums(view: View, policy: EffectivePolicy) -> list[str]:
    """Return the names of a view's sums; no column of `reputation` has this prefix."""
    return [f"earned_{view.name}_{number}" for number, _ in enumerate(policy.half_lives)]


def _summed_columns(view: View, policy: EffectivePolicy) -> dict[str, str]:
    """Return the columns of a view's row of sums with their SQL: the mean of no ratings is null."""
    name, measures = view.name, policy.rules.all_measures.items()
    weighted = {key for key, measure in measures if rating_weight(measure, policy) is not None}
    return {
        **{column: column for column in _sums(view, policy)},
        f"{name}_events": f"{name}_count",
        **{f"{name}_{key}": value(f"{name}_{key}", measure, weighted=key in weighted) for key, measure in measures},
        f"{name}_rating_count": f"{name}_ratings",
    }


def shown_columns(view: View, policy: EffectivePolicy) -> dict[str, str]:
    """Return the columns of a view with their SQL, from a row of sums; a suspension may hide scores and measures."""
    name, shown = view.name, policy.rules.status.shown
    columns = {f"{name}_{column}": f"{name}_{column}" for column in view_columns(policy)}
    columns[f"{name}_score"] = _score(view, policy)
    if policy.rules.status.rule == "hide":
        hidden = {f"{name}_{key}": "NULL" for key in policy.rules.all_measures}
        hidden |= {f"{name}_score": "NULL" if shown is None else _in_points(units(shown, policy), policy)}
        columns |= {
            key: f"CASE WHEN status = 'active' THEN {columns[key]} ELSE {sql} END" for key, sql in hidden.items()
        }
    return columns


def _level(policy: EffectivePolicy) -> dict[str, str]:
    """Return the columns of the level with their SQL, from a row of sums; a suspension may hide them."""
    levels, total = policy.rules.levels, _total(views(policy)[0], policy)
    if not levels:
        return {}
    number, nexts = "level_no", enumerate(levels.values())
    if policy.decays:
        reached = (units(level.at, policy) for level in levels.values())
        number = f"({' + '.join(statement('has_level', score=total, reached=each) for each in reached)})"
    needed = "".join(f" WHEN {below} THEN {units(level.at, policy)}" for below, level in nexts)
    to_next = _in_points(f"(CASE {number}{needed} END - {total})", policy)
    columns = {
        "level": level_name(policy, number),
        "next_level": level_name(policy, f"{number} + 1"),
        "points_to_next_level": f"CASE WHEN {number} < {len(levels)} THEN {to_next} END",
    }
    if policy.rules.status.rule == "hide":
        return {name: f"CASE WHEN status = 'active' THEN {sql} END" for name, sql in columns.items()}
    return columns


def _score(view: View, policy: EffectivePolicy) -> str:
    return _in_points(_total(view, policy), policy)


def _total(view: View, policy: EffectivePolicy) -> str:
    """Return the score of a view in the unit of `units`, from a row of sums."""
    total = in_units(_sums(view, policy), policy)
    if view.has_bounds:
        total = bounded(f"{total} + {units(policy.rules.score.start, policy)}", policy)
    return total


def in_units(totals: Sequence[str], policy: EffectivePolicy) -> str:
    """Return SQL that adds up sums of `earned`, one for each half-life, in the unit of `units`.

    Where points decay, each sum is scaled from its epoch to `decayed_to` by a factor computed here, so that every
    engine and every reader multiplies by the same one.
    """
    if not policy.decays:
        (total,) = totals
        return total
    scaled = [_scaled(total, half_life, policy) for total, half_life in zip(totals, policy.half_lives, strict=True)]
    return f"({' + '.join(scaled)})"


def _scaled(total: str, half_life: HalfLife | None, policy: EffectivePolicy) -> str:
    unit = 10 ** (SUM_DIGITS - SCORE_DIGITS)
    if half_life is None:
        return f"{total} // {unit}"
    factor = half_life.remaining(policy.decayed_to_us) / unit
    return f"CAST(round(CAST({total} AS DOUBLE) * CAST('{factor!r}' AS DOUBLE)) AS HUGEINT)"


def bounded(total: str, policy: EffectivePolicy) -> str:
    """Return an all-time total (start included) limited to the policy's floor and ceiling."""
    score = policy.rules.score
    if score.floor is not None:
        total = f"greatest({total}, {units(score.floor, policy)})"
    if score.ceiling is not None:
        total = f"least({total}, {units(score.ceiling, policy)})"
    return f"({total})"


def units(number: Number, policy: EffectivePolicy) -> str:
    """Return a number of points in micro-points or, where points decay, in the unit of scores, 10^-12 points."""
    return f"CAST({micro(number) * 10 ** (SCORE_DIGITS - MICRO_DIGITS if policy.decays else 0)} AS HUGEINT)"


def _in_points(total: str, policy: EffectivePolicy) -> str:
    """Return a total in the unit of `units` as the displayed number: exact, or a float where points decay."""
    return (
        f"CAST(CAST({total} AS HUGEINT) AS DOUBLE) / 1e{SCORE_DIGITS}"
        if policy.decays
        else exact(total, policy.score_digits)
    )
