"""Measures as SQL: the ratings of a view that a formula uses, and its value.

Owns the formulas. A value is a fraction of whole numbers (ratings are in millionths), so that rounding is exact.
"""

from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.measures import Measure
from pipelines.reputation.policy.numbers import MICRO, Number, micro

_WILSON_UNIT = 10**15


def tally_columns(name: str, measure: Measure, within: str) -> list[str]:
    """Return the aggregates over `fact` that a measure needs: `{name}_n`, `{name}_sum` and `{name}_p`.

    `within` is the condition of the view.
    """
    judged, positive = _conditions(measure, within)
    total = _median_twice(judged) if measure.formula == "median" else f"sum(rating) FILTER ({judged})"
    return [
        f"count(rating) FILTER ({judged}) AS {name}_n",
        f"CAST(coalesce({total}, 0) AS HUGEINT) AS {name}_sum",
        f"count(*) FILTER ({positive}) AS {name}_p",
        *_prior(name, measure, judged),
    ]


def weighted_tally_columns(name: str, measure: Measure, within: str, weight: str) -> list[str]:
    """Return the aggregates of a measure whose ratings have weights: those of `tally_columns`, and two sums of weights.

    weight: that of `rating_weight`. `{name}_sum` is that of ratings times weights, `{name}_weight` and
    `{name}_positive_weight` are in the unit of the weights. A rating that weighs nothing is in none of them.
    """
    judged, positive = (f"{condition} AND {weight} > 0" for condition in _conditions(measure, within))
    return [
        f"count(rating) FILTER ({judged}) AS {name}_n",
        f"CAST(coalesce(sum(CAST(rating AS HUGEINT) * {weight}) FILTER ({judged}), 0) AS HUGEINT) AS {name}_sum",
        f"count(*) FILTER ({positive}) AS {name}_p",
        f"CAST(coalesce(sum({weight}) FILTER ({judged}), 0) AS HUGEINT) AS {name}_weight",
        f"CAST(coalesce(sum({weight}) FILTER ({positive}), 0) AS HUGEINT) AS {name}_positive_weight",
        *_prior(name, measure, judged),
    ]


def rating_weight(measure: Measure, policy: EffectivePolicy) -> str | None:
    """Return SQL of how much a rating counts in a measure, from a row of `fact`; None where all count alike.

    It is in millionths or, in a mean with a half-life, whose value does not depend on the unit, in billionths.
    """
    if measure.half_life_us is None:
        return "weight" if policy.weighs_ratings else None
    recency = f"recency_{policy.rules.recencies_us.index(measure.half_life_us)}"
    return f"(CAST(weight AS HUGEINT) * {recency} // {MICRO})" if policy.weighs_ratings else recency


def _median_twice(judged: str) -> str:
    """Return the sum of the two ratings in the middle: the lower one, and the lower one of the negated ratings."""
    lower, negated = (f"quantile_disc(CASE WHEN {judged} THEN {rating} END, 0.5)" for rating in ("rating", "-rating"))
    return f"{lower} - {negated}"


def _prior(name: str, measure: Measure, judged: str) -> list[str]:
    """Return the aggregate `{name}_prior` of a measure with a prior from all ratings: that of the latest rating."""
    if measure.prior is None:
        return []
    prior = f"coalesce(prior, {_micro(measure.prior_mean)})"
    return [f"arg_max({prior}, t) FILTER ({judged} AND rating IS NOT NULL) AS {name}_prior"]


def _conditions(measure: Measure, within: str) -> tuple[str, str]:
    """Return which ratings of a view a measure judges, and which of them are positive."""
    seen = f"{within} AND rating_rank <= {measure.last}" if measure.last else within
    judged = seen
    if measure.positive_from is not None and measure.negative_to is not None:
        judged += f" AND (rating >= {micro(measure.positive_from)} OR rating <= {micro(measure.negative_to)})"
    positive = "false" if measure.positive_from is None else f"{seen} AND rating >= {micro(measure.positive_from)}"
    return judged, positive


def value(name: str, measure: Measure, *, weighted: bool) -> str:
    """Return the SQL of a measure's value from its aggregates: a BIGINT for counts, else a DOUBLE or null.

    weighted: whether the aggregates are those of `weighted_tally_columns`; counts are those of the ratings.
    """
    if measure.formula == "positives":
        return f"{name}_p"
    if measure.formula == "negatives":
        return f"{name}_n - {name}_p"
    numerator, denominator = _fraction(name, measure, weighted=weighted)
    if measure.digits is not None:
        scale = 10**measure.digits
        numerator, denominator = f"round_{measure.rounding}(({numerator}) * {scale}, {denominator})", str(scale)
    below = "NULL" if measure.below_minimum is None else _number(measure.below_minimum)
    known = f"CAST(CAST({numerator} AS HUGEINT) AS DOUBLE) / CAST(CAST({denominator} AS HUGEINT) AS DOUBLE)"
    return f"CASE WHEN {name}_n >= {measure.minimum_count} THEN {known} ELSE CAST({below} AS DOUBLE) END"


def _fraction(name: str, measure: Measure, *, weighted: bool) -> tuple[str, str]:
    """Return numerator and denominator; the denominator is above 0 whenever there is a rating.

    Ratings count by their weights in millionths; without weights, each by a million of them.
    """
    total, n, p = f"{name}_sum", f"{name}_weight", f"{name}_positive_weight"
    if not weighted:
        n, p = (f"CAST({name}_{count} AS HUGEINT) * {MICRO}" for count in "np")
    match measure.formula:
        case "mean":
            return total, f"{n} * {MICRO}" if weighted else n
        case "median":
            return total, f"CAST({2 * MICRO} AS HUGEINT)"
        case "bayesian":
            weight, mean = _micro(measure.prior_weight), _micro(measure.prior_mean)
            mean = f"{name}_prior" if measure.prior else mean
            total = total if weighted else f"{total} * {MICRO}"
            return f"{weight} * {mean} + {total}", f"({weight} + {n}) * {MICRO}"
        case "beta":
            positive, negative = _micro(measure.prior_positive), _micro(measure.prior_negative)
            return f"{p} + {positive}", f"{n} + {positive} + {negative}"
        case "share":
            return p, n
        case "wilson":
            counts = f"{name}_p, {name}_n"
            if weighted:
                counts = ", ".join(f"CAST(CAST({count} AS HUGEINT) AS DOUBLE) / 1e6" for count in (p, n))
            bound = f"wilson({counts}, CAST('{measure.z!r}' AS DOUBLE))"
            return f"CAST(round({bound} * {_WILSON_UNIT}) AS HUGEINT)", str(_WILSON_UNIT)
        case "positives" | "negatives":
            raise AssertionError("counts are not fractions: `value` returns them")


def _number(number: Number) -> str:
    return f"{micro(number)} / {MICRO}.0"


def _micro(number: Number | None) -> str:
    return f"CAST({micro(number)} AS HUGEINT)" if number is not None else "NULL"
