"""The numbers of a policy: decimals of at most six digits after the point, hence whole micro-points and exact sums."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

MICRO_DIGITS = 6
MICRO = 10**MICRO_DIGITS
DAY_US = 86_400_000_000
MINUTE_US = 60_000_000
MAX_POINTS = 1_000_000
"""Limit of every number: a million of the largest contributions of one user fit into 18 digits, 6 of them after the
point. More are an error on every engine, never a wrong number; sums over users have 38 digits."""

MAX_NAME_CHARS = 256
_PLAIN = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{1,6}0*)?")
_SixDecimals = Field(le=MAX_POINTS, decimal_places=MICRO_DIGITS, allow_inf_nan=False)
Number = Annotated[Decimal, _SixDecimals, Field(ge=-MAX_POINTS)]
NonNegative = Annotated[Decimal, _SixDecimals, Field(ge=0)]
Positive = Annotated[Decimal, _SixDecimals, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


def number_or_text(value: Any) -> Decimal | str:
    """Return a key of a map: a number if it is a plain decimal, which metadata are compared with as numbers; else text.

    Raises ValueError for a text that is empty or longer than MAX_NAME_CHARS.
    """
    text = f"{value:f}" if isinstance(value, Decimal) else str(value)
    if not 1 <= len(text) <= MAX_NAME_CHARS:
        raise ValueError(f"a key of a map has 1 to {MAX_NAME_CHARS} characters: shorten it")
    return Decimal(text) if _PLAIN.fullmatch(text) else text


def micro(number: Decimal) -> int:
    """Return a decimal of at most six digits after the point as a whole number of millionths."""
    return int(number.scaleb(MICRO_DIGITS))


def decimals(number: Decimal) -> int:
    """Return how many digits after the point the number needs."""
    exponent = number.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("has to be a whole number")  # noqa: TRY004 - pydantic reports no TypeError
    return value


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


NumberOrText = Annotated[Decimal | str, PlainValidator(number_or_text)]
Whole = Annotated[int, BeforeValidator(_no_truth)]
"""A whole number; pydantic alone would take true for 1."""
Names = Annotated[tuple[Name, ...], BeforeValidator(_names)]
"""One name, or an array of names."""


class Section(BaseModel):
    """Base of every table of a policy file: unknown keys are rejected; immutable after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
