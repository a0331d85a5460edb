"""What an event of one action_type does: carry a rating, and emit points."""

from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipelines.boundary.mistakes import MistakeError
from pipelines.reputation.policy.numbers import (
    DAY_US,
    MAX_POINTS,
    MICRO_DIGITS,
    Name,
    NonNegative,
    Number,
    NumberOrText,
    Positive,
    Section,
    Whole,
    decimals,
    number_or_text,
)


class EventNumber(Section):
    """A number that an event has: fixed, which a file writes as the number alone, or read from the metadata."""

    fixed: Number | None = None
    key: Name | None = Field(default=None, alias="from")
    """The metadata key."""
    missing: Number | None = None
    """The number of an event without the metadata key; None: it is `unreadable`."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return value if isinstance(value, dict | cls) else {"fixed": value}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.fixed is None) == (self.key is None):
            raise ValueError('give either a number, or a table with "from" (the metadata key)')
        if self.missing is not None and self.key is None:
            raise ValueError('missing belongs to a table with "from" (the metadata key)')
        return self


class Weight(EventNumber):
    """How much a rating counts in the measures: fixed, or a number of the metadata within bounds."""

    fixed: NonNegative | None = None
    missing: NonNegative | None = None
    """The weight of an event without the metadata key; None: the event is `unreadable`."""
    unreadable: NonNegative | None = None
    """The weight of an event with another text at the key; None: the event is `unreadable`."""
    minimum: NonNegative | None = None
    maximum: NonNegative | None = None
    digits: Whole = Field(default=0, ge=0, le=MICRO_DIGITS)
    """Digits after the point that a weight may have."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.key is not None:
            _check_bounds(self.minimum, self.maximum, self.digits)
        elif self.model_fields_set & {"minimum", "maximum", "digits", "unreadable"}:
            raise ValueError("minimum, maximum, digits and unreadable are of a number in the metadata: remove them")
        for name, given in {"missing": self.missing, "unreadable": self.unreadable}.items():
            if given is not None and given > self.highest:
                raise MistakeError((name,), f"{given} is above maximum {self.highest}: choose one from 0 to it")
        return self

    @property
    def highest(self) -> Decimal:
        """The highest weight that a rating can have."""
        return max(number for number in (self.fixed, self.maximum) if number is not None)


class Rating(EventNumber):
    """The rating of an event: fixed, a number of the metadata within bounds, or what a text of the metadata stands for.

    Outside the bounds, with more digits, or not in the map, it is `unreadable`.
    """

    map: Annotated[dict[Name, Number], Field(min_length=1)] | None = None
    """Ratings by text."""
    minimum: Number | None = None
    maximum: Number | None = None
    digits: Whole = Field(default=0, ge=0, le=MICRO_DIGITS)
    """Digits after the point that a rating may have."""
    weight: Weight | None = None
    """How much the rating counts in the measures; None: 1."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.fixed is None and self.map is None:
            _check_bounds(self.minimum, self.maximum, self.digits)
        elif self.model_fields_set & {"minimum", "maximum", "digits"}:
            raise ValueError("minimum, maximum and digits are of a number in the metadata: remove them")
        if self.map is not None and (numbers := [key for key in self.map if isinstance(number_or_text(key), Decimal)]):
            raise MistakeError(
                ("map",), f"{numbers[0]} is a number, which is read as it is: a rating's map holds texts"
            )
        self._check_size()
        return self

    def _check_size(self) -> None:
        lowest, highest = self.bounds
        if self.missing is not None and not lowest <= self.missing <= highest:
            raise MistakeError(("missing",), f"{self.missing} is no rating: choose one from {lowest} to {highest}")
        if self.weight is not None and max(abs(lowest), abs(highest)) * self.weight.highest > MAX_POINTS:
            raise MistakeError(("weight",), f"a rating times a weight exceeds {MAX_POINTS}: give a smaller maximum")

    @property
    def bounds(self) -> tuple[Decimal, Decimal]:
        """The lowest and the highest rating that an event can have."""
        numbers = [*(self.map or {}).values(), self.fixed, self.minimum, self.maximum]
        given = [number for number in numbers if number is not None]
        return min(given), max(given)

    @property
    def rating_digits(self) -> int:
        """Digits after the point that a rating can have."""
        listed = [*(self.map or {}).values(), self.fixed or Decimal(0), self.missing or Decimal(0)]
        return max(self.digits, *map(decimals, listed))


class Points(EventNumber):
    """Points of an emission: fixed, looked up in a map, or a number of the metadata times `scale`."""

    map: dict[NumberOrText, Number] | None = None
    """Points by value, a number or a text; a value that is not in the map is `unreadable`."""
    scale: Number = Decimal(1)
    minimum: Number = Decimal(-MAX_POINTS)
    """Values below are `unreadable`."""
    maximum: Number = Decimal(MAX_POINTS)
    """Values above are `unreadable`."""
    digits: Whole = Field(default=0, ge=0, le=MICRO_DIGITS)
    """Digits after the point that a value may have."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.map is not None and self.model_fields_set & {"scale", "minimum", "maximum", "digits"}:
            raise ValueError("map excludes scale, minimum, maximum and digits: remove them")
        _check_order(self.minimum, self.maximum)
        _check_digits(self.minimum, self.maximum, self.digits)
        if self.digits + decimals(self.scale) > MICRO_DIGITS:
            raise ValueError("digits plus the decimals of scale exceed six: points would not be exact")
        if max(abs(self.minimum), abs(self.maximum)) * abs(self.scale) > MAX_POINTS:
            raise ValueError(f"scale times a bound exceeds {MAX_POINTS} points: give minimum and maximum")
        return self

    @property
    def score_digits(self) -> int:
        """Digits after the point that these points can have."""
        if self.fixed is not None:
            return decimals(self.fixed)
        listed = [*(self.map or {}).values(), self.missing or Decimal(0)]
        read = self.digits + decimals(self.scale) if self.map is None else 0
        return max(read, *map(decimals, listed))


class Emission(Section):
    """Points that one event earns."""

    points: Points
    half_life_days: Positive | None = None
    """Half-life of the points in days of 86,400 s; None: they do not decay."""
    penalties_expire_after_days: Whole | None = Field(default=None, ge=1, le=36_500)
    """Age of the event, in days of 86,400 s, at which its points below zero stop counting; None: never."""

    @property
    def half_life_us(self) -> int | None:
        """The half-life in microseconds."""
        return None if self.half_life_days is None else int(self.half_life_days * DAY_US)


class Condition(Section):
    """What an event's metadata must have at a key: a text, or a number within bounds."""

    equals: str | None = None
    """The text, character by character."""
    minimum: Number | None = None
    maximum: Number | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return value if isinstance(value, dict | cls) else {"equals": value}

    @model_validator(mode="after")
    def _text_or_bounds(self) -> Self:
        if (self.equals is None) == (self.minimum is None and self.maximum is None):
            raise ValueError("give either a text, or a table with minimum, maximum or both")
        if self.minimum is not None and self.maximum is not None:
            _check_order(self.minimum, self.maximum)
        return self


class Action(Section):
    """What events of one action_type do: a rating, and one emission of points or several."""

    where: dict[Name, Condition] = Field(default_factory=dict)
    """Conditions by metadata key. An event for which one does not hold is `not matched`, and earns nothing."""
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
        more = rest.get("emit", ())
        if not isinstance(more, list | tuple):
            raise ValueError("emit is an array of tables: write [[actions.NAME.emit]]")  # noqa: TRY004 - a mistake in a file
        return {**rest, "emit": (first, *more)}

    @property
    def emissions(self) -> tuple[Emission, ...]:
        """The emissions; an action that only carries a rating emits zero points."""
        return self.emit or (Emission.model_validate({"points": 0}),)


class Adjustment(Section):
    """Points that an operator gives or takes by an event of an action of its own (`karmalake adjust`).

    Rules over all actions, such as caps, do not cover it; a suspension and a retraction do.
    """

    action: Name = "PointsAdjusted"
    """The action_type of adjustments."""
    points: Points
    """Where an adjustment holds its points, with their bounds."""
    half_life_days: Positive | None = None
    """Half-life of the points in days of 86,400 s; None: they do not decay."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        points = self.points
        if points.key is None or points.scale != 1 or not points.model_fields_set.isdisjoint({"map", "missing"}):
            raise ValueError('points of an adjustment are a table with "from", minimum and maximum, and perhaps digits')
        if not {"minimum", "maximum"} <= points.model_fields_set:
            raise ValueError("points need a minimum and a maximum: say how much an operator may give and take")
        return self

    @property
    def rule(self) -> Action:
        """What events of the action do."""
        emission = {"points": self.points, "half_life_days": self.half_life_days}
        return Action(emit=(Emission.model_validate(emission),))


def _check_bounds(minimum: Decimal | None, maximum: Decimal | None, digits: int) -> None:
    for name, bound in {"minimum": minimum, "maximum": maximum}.items():
        if bound is None:
            raise MistakeError((name,), "is missing: add it")
    assert minimum is not None and maximum is not None  # noqa: S101, PT018 - tells the type checker
    _check_order(minimum, maximum)
    _check_digits(minimum, maximum, digits)


def _check_order(minimum: Decimal, maximum: Decimal) -> None:
    if minimum > maximum:
        raise ValueError(f"minimum {minimum} is above maximum {maximum}: swap them")


def _check_digits(minimum: Decimal, maximum: Decimal, digits: int) -> None:
    """Reject bounds with more digits than `digits`: values that need them would be silently unreadable."""
    needed = max(decimals(minimum), decimals(maximum))
    if needed > digits:
        raise ValueError(
            f"minimum {minimum} and maximum {maximum} need digits = {needed}, and digits is {digits}: values with "
            "decimals would be unreadable"
        )
