"""How much each rater's ratings count: alike, or by the trust of those whom others trust."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from pipelines.reputation.policy.numbers import MICRO_DIGITS, Name, Names, Section, Whole

_Share = Annotated[Decimal, Field(ge=0, le=1, decimal_places=MICRO_DIGITS, allow_inf_nan=False)]


class Raters(Section):
    """The weight of each rater's ratings in every measure, recomputed for each UTC day."""

    weight: Literal["trust"]
    """`trust`: EigenTrust over the ratings before the day (Kamvar, Schlosser and Garcia-Molina, WWW 2003)."""
    seeds: Annotated[Names, Field(min_length=1)]
    """user_ids that are trusted from the start, in equal parts."""
    damping: _Share = Decimal("0.15")
    """Share of all trust that returns to the seeds in each round."""
    rounds: Whole = Field(default=10, ge=1, le=50)
    """Rounds of passing trust on."""
    minimum: Annotated[_Share, Field(lt=1)] = Decimal(0)
    """Weight of a rater whom trust does not reach, and the least of any; 0: such ratings are in no measure."""
    key: Name = "rater_id"
    """The metadata key that holds the rater. A rating without it has the minimum."""
