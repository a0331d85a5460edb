"""Points from time alone: dated contributions that a user earns without an event, such as one each month."""

from decimal import Decimal

from pydantic import Field

from pipelines.reputation.policy.actions import Emission, Points
from pipelines.reputation.policy.gates import Period
from pipelines.reputation.policy.numbers import Names, Number, Positive, Section, Whole

_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "year": 12}


class TimePoints(Section):
    """Points at the start of a UTC day, whenever another period has passed since the day of the user's first event."""

    points: Number
    every: Period
    """Length of the period. Months and years end on the same day of the month as they began, or on its last day."""
    since: Names = ()
    """Actions of which the first event counts as the user's first one; empty: any event."""
    times: Whole | None = Field(default=None, ge=1)
    """How often at most; None: without end."""
    half_life_days: Positive | None = None
    """Half-life of the points in days of 86,400 s; None: they do not decay."""

    @property
    def days(self) -> int:
        """Length of the period in days, where it is not one of months; else 0."""
        return _DAYS.get(self.every, 0)

    @property
    def months(self) -> int:
        """Length of the period in months, where it is one of months; else 0."""
        return _MONTHS.get(self.every, 0)

    @property
    def emission(self) -> Emission:
        """What is earned each time."""
        return Emission(points=Points(fixed=Decimal(self.points)), half_life_days=self.half_life_days)
