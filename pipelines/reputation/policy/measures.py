"""Measures of a view's ratings: means, and substitutes for a mean of few ratings.

Every formula but Wilson's is a fraction of whole numbers; `digits` rounds it exactly.
"""

from decimal import Decimal
from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.boundary.mistakes import MistakeError
from pipelines.reputation.policy.numbers import DAY_US, Number, Positive, Section, Whole

_BINARY = ("beta", "wilson", "share", "positives", "negatives")


class Measure(Section):
    """One number computed from a view's ratings."""

    formula: Literal["mean", "median", "bayesian", "beta", "wilson", "share", "positives", "negatives"]
    """`mean` sum/n; `median` the rating in the middle, or the mean of the two in the middle; `bayesian`
    (prior_weight * prior_mean + sum) / (prior_weight + n); `beta` the expectation
    (p + prior_positive) / (n + prior_positive + prior_negative); `wilson` the lower bound of the score interval
    (E. B. Wilson, JASA 22, 1927); `share` p/n; `positives` p; `negatives` n - p."""
    last: Whole | None = Field(default=None, ge=1)
    """Use only the latest N ratings of the view, in the order of events."""
    positive_from: Number | None = None
    """p counts the ratings from this value upwards."""
    negative_to: Number | None = None
    """Ratings above this and below `positive_from` are neutral and not in n. None: n counts all."""
    prior: Literal["global"] | None = None
    """`global`: the mean of all ratings, of any user, before the UTC day of the latest rating that the measure uses,
    instead of `prior_mean`, which stands for it while there are none. None: `prior_mean`."""
    half_life_days: Positive | None = None
    """Of a mean: a rating counts half as much as one that is so many days of 86,400 s later; None: all count alike."""
    prior_mean: Number | None = None
    prior_weight: Positive | None = None
    prior_positive: Positive = Decimal(1)
    prior_negative: Positive = Decimal(1)
    z: float = Field(default=1.959963984540054, gt=0, le=10)
    """Quantile of the normal distribution: confidence of the Wilson bound (default: 95 %, two-sided)."""
    minimum_count: Whole = Field(default=1, ge=1)
    """With fewer ratings than this the value is `below_minimum`, or null."""
    below_minimum: Number | None = None
    default: Number | None = None
    """Published beside a missing value, never instead of it."""
    digits: Whole | None = Field(default=None, ge=0, le=9)
    """Round to this many digits after the point; None: no rounding."""
    rounding: Literal["half_up", "half_even", "floor", "ceiling"] = "half_up"

    @model_validator(mode="after")
    def _has_what_its_formula_needs(self) -> Self:
        if self.formula in _BINARY and self.positive_from is None:
            raise ValueError(f"{self.formula} needs positive_from: the smallest rating that counts as positive")
        if self.formula == "bayesian" and (self.prior_mean is None or self.prior_weight is None):
            raise ValueError("bayesian needs prior_mean and prior_weight")
        if self.prior is not None and self.formula != "bayesian":
            raise ValueError(f"prior belongs to bayesian, and the formula is {self.formula}: remove it")
        if None not in (self.negative_to, self.positive_from) and self.negative_to >= self.positive_from:  # pyright: ignore[reportOperatorIssue]
            raise ValueError(f"negative_to {self.negative_to} must be below positive_from {self.positive_from}")
        if self.half_life_days is not None and self.formula != "mean":
            raise MistakeError(("half_life_days",), f"belongs to a mean, and the formula is {self.formula}: remove it")
        return self

    @property
    def half_life_us(self) -> int | None:
        """The half-life in microseconds."""
        return None if self.half_life_days is None else int(self.half_life_days * DAY_US)
