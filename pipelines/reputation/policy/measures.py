"""What the ratings of a view come to: means, and what stands in for a mean when ratings are few.

Every formula but Wilson's is a fraction of whole numbers, rounded exactly where rounding is asked for.
"""

from decimal import Decimal
from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.reputation.policy.numbers import Number, Positive, Section

_BINARY = ("beta", "wilson", "share", "positives", "negatives")


class Measure(Section):
    """One number made of a view's ratings."""

    formula: Literal["mean", "bayesian", "beta", "wilson", "share", "positives", "negatives"]
    """`mean` sum/n; `bayesian` (prior_weight * prior_mean + sum) / (prior_weight + n); `beta` the expectation
    (p + prior_positive) / (n + prior_positive + prior_negative); `wilson` the lower bound of the score interval
    (E. B. Wilson, JASA 22, 1927); `share` p/n; `positives` p; `negatives` n - p."""
    last: int | None = Field(default=None, ge=1)
    """Only the latest so many ratings of the view, by the order of events."""
    positive_from: Number | None = None
    """p counts ratings from here on."""
    negative_to: Number | None = None
    """Ratings above this and below `positive_from` are neutral: n leaves them out. Without it, n counts all."""
    prior_mean: Number | None = None
    prior_weight: Positive | None = None
    prior_positive: Positive = Decimal(1)
    prior_negative: Positive = Decimal(1)
    z: float = Field(default=1.959963984540054, gt=0, le=10)
    """Quantile of the normal distribution: how sure the Wilson bound is (default: 95 %, two-sided)."""
    minimum_count: int = Field(default=1, ge=1)
    """With fewer ratings than this there is no value, or `below_minimum` where it is given."""
    below_minimum: Number | None = None
    default: Number | None = None
    """Told beside a missing value, never in its place."""
    digits: int | None = Field(default=None, ge=0, le=9)
    """Round to so many digits after the point; without it nothing is rounded."""
    rounding: Literal["half_up", "half_even", "floor", "ceiling"] = "half_up"

    @model_validator(mode="after")
    def _has_what_its_formula_needs(self) -> Self:
        if self.formula in _BINARY and self.positive_from is None:
            raise ValueError(f"{self.formula} needs positive_from: the smallest rating that counts as positive")
        if self.formula == "bayesian" and (self.prior_mean is None or self.prior_weight is None):
            raise ValueError("bayesian needs prior_mean and prior_weight")
        if None not in (self.negative_to, self.positive_from) and self.negative_to >= self.positive_from:  # pyright: ignore[reportOperatorIssue]
            raise ValueError(f"negative_to {self.negative_to} must lie below positive_from {self.positive_from}")
        return self
