"""The policy language: one validated model of the rules that turn events into points.

Owns what a policy can say and what it means. Reading the file and explaining mistakes is `policy_file.py`; handing a
policy to the SQL is `policy_tables.py`.

Every number of a policy is a decimal with at most six digits after the point, so that points are whole micro-points
and sums are exact. Bounds keep nine million of the largest contributions of one user within 64 bits.
"""

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MICRO_DIGITS = 6
MICRO = 10**MICRO_DIGITS
MAXIMUM_POINTS = 1_000_000

Number = Annotated[
    Decimal, Field(ge=-MAXIMUM_POINTS, le=MAXIMUM_POINTS, decimal_places=MICRO_DIGITS, allow_inf_nan=False)
]
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


class Rating(Section):
    """Where an event's rating stands. Outside the bounds, or with more decimals, it is `unreadable`."""

    key: Name = Field(alias="from")
    """The metadata key."""
    minimum: Number
    maximum: Number
    digits: int = Field(0, ge=0, le=MICRO_DIGITS)
    """Digits after the point that a rating may have."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}: swap them")
        return self


class Points(Section):
    """Points of an emission: fixed, looked up in a map, or a number of the metadata times `scale`."""

    fixed: Number | None = None
    key: Name | None = Field(None, alias="from")
    """The metadata key that holds a number."""
    map: dict[Number, Number] | None = None
    """Points by value; a value that is not in the map is `unreadable`."""
    scale: Number = Decimal(1)
    minimum: Number = Decimal(-MAXIMUM_POINTS)
    """Values below are `unreadable`."""
    maximum: Number = Decimal(MAXIMUM_POINTS)
    """Values above are `unreadable`."""
    digits: int = Field(0, ge=0, le=MICRO_DIGITS)
    """Digits after the point that a value may have."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return value if isinstance(value, dict | cls) else {"fixed": value}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.fixed is None) == (self.key is None):
            raise ValueError('give either a number, or a table with "from" (the metadata key)')
        if self.map is not None and self.model_fields_set & {"scale", "minimum", "maximum", "digits"}:
            raise ValueError("map says everything: remove scale, minimum, maximum and digits")
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}: swap them")
        if self.digits + decimals(self.scale) > MICRO_DIGITS:
            raise ValueError("digits and the decimals of scale together are more than six: points would not be exact")
        if max(abs(self.minimum), abs(self.maximum)) * abs(self.scale) > MAXIMUM_POINTS:
            raise ValueError(f"scale times the bounds passes {MAXIMUM_POINTS} points: give minimum and maximum")
        return self

    @property
    def score_digits(self) -> int:
        """Digits after the point that these points can have."""
        if self.fixed is not None:
            return decimals(self.fixed)
        if self.map is not None:
            return max((decimals(points) for points in self.map.values()), default=0)
        return self.digits + decimals(self.scale)


class Emission(Section):
    """Points that one event earns."""

    points: Points


class Action(Section):
    """What events of one action_type do: a rating, and one emission of points or several."""

    rating: Rating | None = None
    emit: tuple[Emission, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_shorthand(cls, value: Any) -> Any:
        """Turn `points = ...` beside the rating into the first emission."""
        inline = set(Emission.model_fields)
        if not isinstance(value, dict) or not inline & value.keys():
            return value
        rest = {key: item for key, item in value.items() if key not in inline}
        first = {key: item for key, item in value.items() if key in inline}
        return {**rest, "emit": (first, *rest.get("emit", ()))}

    @property
    def emissions(self) -> tuple[Emission, ...]:
        """The emissions; an action that only carries a rating emits zero points."""
        return self.emit or (Emission.model_validate({"points": 0}),)


class Status(Section):
    """Which actions suspend and reinstate a user, and what a suspension does."""

    suspend: tuple[Name, ...] = ()
    reinstate: tuple[Name, ...] = ()
    rule: Literal["freeze"] = "freeze"
    """`freeze`: events in [suspended, reinstated) earn nothing."""


class Retraction(Section):
    """Which actions withdraw an earlier (or later) event of the same user."""

    actions: tuple[Name, ...] = ()
    target: Name = "target_event_id"
    """The metadata key that holds the event_id of the withdrawn event."""


class Policy(Section):
    """The versioned rules that turn events into points."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    version: Name
    description: str = ""
    windows_days: tuple[Annotated[int, Field(ge=1, le=36_500)], ...] = (7, 30, 90, 365)
    """Lengths of the views beside all time: [as_of - N x 86,400 s, as_of)."""
    status: Status = Status()
    retraction: Retraction = Retraction()
    actions: dict[Name, Action] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.windows_days)) != len(self.windows_days):
            raise ValueError("windows_days names a length twice")
        roles = [*self.status.suspend, *self.status.reinstate, *self.retraction.actions, *self.actions]
        twice = sorted({action for action in roles if roles.count(action) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands in two roles: an action earns, or changes status, or retracts")
        return self

    @property
    def score_digits(self) -> int:
        """Digits after the point that a score can have: 0 makes every score a whole number."""
        emissions = [emission for action in self.actions.values() for emission in action.emissions]
        return max((emission.points.score_digits for emission in emissions), default=0)

    @property
    def rating_digits(self) -> int:
        """Digits after the point that a sum of ratings can have."""
        return max((action.rating.digits for action in self.actions.values() if action.rating), default=0)
