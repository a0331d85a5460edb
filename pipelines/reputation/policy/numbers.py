"""The numbers of a policy: decimals of at most six digits after the point, hence whole micro-points and exact sums."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MICRO_DIGITS = 6
MICRO = 10**MICRO_DIGITS
DAY_US = 86_400_000_000
MAXIMUM_POINTS = 1_000_000
"""Bounds every number: nine million of the largest contributions of one user still fit into 64 bits."""

_Six = Field(le=MAXIMUM_POINTS, decimal_places=MICRO_DIGITS, allow_inf_nan=False)
Number = Annotated[Decimal, _Six, Field(ge=-MAXIMUM_POINTS)]
NotNegative = Annotated[Decimal, _Six, Field(ge=0)]
Positive = Annotated[Decimal, _Six, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


def micro(number: Decimal) -> int:
    """Return a decimal of at most six digits after the point as a whole number of millionths."""
    return int(number.scaleb(MICRO_DIGITS))


def decimals(number: Decimal) -> int:
    """Return how many digits after the point the number needs."""
    exponent = number.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


class Section(BaseModel):
    """Base of every table of a policy file: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class RuleError(ValueError):
    """A mistake between two places of a policy; `path` is where to mend it."""

    def __init__(self, path: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.path = path
