"""The rules of reputation, told a second time: one event at a time, in plain Python, with no SQL and no columns.

An independent reading of the rulings. It shares the policy model with the engine (what a file says), and nothing of
how points come about.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.actions import Action, Points, Rating
from pipelines.reputation.policy.measures import Measure
from tests.reputation.history import DAY, Event

_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{1,6})?")


@dataclass
class Contribution:
    """What one emission of one event came to."""

    event: Event
    emission_no: int | None
    points: Fraction | None
    reason: str
    rating: Fraction | None = None

    @property
    def granted(self) -> Fraction:
        return self.points if self.reason == "granted" and self.points is not None else Fraction(0)

    @property
    def counted(self) -> bool:
        return self.reason == "granted" and self.emission_no == 0


@dataclass
class Shown:
    """One view of one user."""

    score: Fraction
    events: int
    measures: dict[str, float | int | None]
    rating_count: int


@dataclass
class Reputation:
    """All views of one user, with the contributions they come from."""

    status: str
    views: dict[str, Shown]
    contributions: list[Contribution]


def number(text: str | None, digits: int) -> Fraction | None:
    """Return the plain decimal number that a text is, unless it has more digits after the point."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    value = Fraction(Decimal(text))
    return value if (value * 10**digits).denominator == 1 else None


def points_of(points: Points, event: Event) -> Fraction | None:
    if points.fixed is not None:
        return Fraction(points.fixed)
    if points.map is not None:
        value = number(event.metadata.get(points.key or ""), 6)
        matches = [earned for stars, earned in points.map.items() if Fraction(stars) == value]
        return Fraction(matches[0]) if matches else None
    value = number(event.metadata.get(points.key or ""), points.digits)
    if value is None or not points.minimum <= value <= points.maximum:
        return None
    return value * Fraction(points.scale)


def rating_of(rating: Rating, event: Event) -> Fraction | None:
    value = number(event.metadata.get(rating.key), rating.digits)
    return value if value is not None and rating.minimum <= value <= rating.maximum else None


def measured(ratings: list[Fraction], measure: Measure) -> float | int | None:
    """Return what ratings, oldest first, come to by a formula."""
    seen = ratings[-measure.last :] if measure.last else ratings
    if measure.positive_from is not None and measure.negative_to is not None:
        seen = [rating for rating in seen if rating >= measure.positive_from or rating <= measure.negative_to]
    n = len(seen)
    p = sum(measure.positive_from is not None and rating >= measure.positive_from for rating in seen)
    if measure.formula in ("positives", "negatives"):
        return p if measure.formula == "positives" else n - p
    if n < measure.minimum_count:
        return None if measure.below_minimum is None else float(measure.below_minimum)
    exact = formula(measure, sum(seen, Fraction(0)), n, p)
    return float(exact if measure.digits is None else rounded(exact, measure.digits, measure.rounding))


def formula(measure: Measure, total: Fraction, n: int, p: int) -> Fraction:
    match measure.formula:
        case "mean":
            return total / n
        case "bayesian":
            weight = Fraction(measure.prior_weight or 0)
            return (weight * Fraction(measure.prior_mean or 0) + total) / (weight + n)
        case "beta":
            prior = Fraction(measure.prior_positive)
            return (p + prior) / (n + prior + Fraction(measure.prior_negative))
        case "share":
            return Fraction(p, n)
        case _:
            return wilson(p, n, Decimal(measure.z))


def wilson(p: int, n: int, z: Decimal) -> Fraction:
    """Return the lower bound with 15 digits after the point, computed with 50."""
    with localcontext() as context:
        context.prec = 50
        share = Decimal(p) / n
        spread = z * (share * (1 - share) / n + z * z / (4 * n * n)).sqrt()
        bound = (share + z * z / (2 * n) - spread) / (1 + z * z / n)
        return Fraction(bound.quantize(Decimal("1e-15")))


def rounded(number: Fraction, digits: int, mode: str) -> Fraction:
    scaled = number * 10**digits
    match mode:
        case "half_up":
            whole = math.floor(scaled + Fraction(1, 2))
        case "half_even":
            whole = round(scaled)
        case "floor":
            whole = math.floor(scaled)
        case _:
            whole = math.ceil(scaled)
    return Fraction(whole, 10**digits)


def reputations(events: Iterable[Event], policy: Policy, as_of: int) -> dict[str, Reputation]:
    """Return the reputation of every user who had an event before as_of."""
    histories: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.t < as_of:
            histories[event.user_id].append(event)
    return {user_id: _Account(policy, as_of).play(history) for user_id, history in histories.items()}


class _Account:
    """One user: takes the events in their order, then shows what they came to."""

    def __init__(self, policy: Policy, as_of: int) -> None:
        self.policy = policy
        self.as_of = as_of
        self.suspended = False
        self.retracted: set[str] = set()
        self.contributions: list[Contribution] = []

    def play(self, history: list[Event]) -> Reputation:
        policy = self.policy
        self.retracted = {
            event.metadata[policy.retraction.target]
            for event in history
            if event.action_type in policy.retraction.actions and policy.retraction.target in event.metadata
        }
        for event in sorted(history, key=self._order):
            self._take(event)
        windows = {"all_time": None} | {f"last_{days}_days": days * DAY for days in policy.windows_days}
        shown = {name: self._view(window) for name, window in windows.items()}
        return Reputation("suspended" if self.suspended else "active", shown, self.contributions)

    def _order(self, event: Event) -> tuple[int, bool, str]:
        return event.t, not self._is_status(event), event.event_id

    def _is_status(self, event: Event) -> bool:
        return event.action_type in self.policy.status.suspend + self.policy.status.reinstate

    def _take(self, event: Event) -> None:
        if self._is_status(event):
            suspends = event.action_type in self.policy.status.suspend
            reason = "no effect" if suspends == self.suspended else "status"
            self.suspended = suspends
            self.contributions.append(Contribution(event, None, None, reason))
        elif event.action_type in self.policy.retraction.actions:
            self.contributions.append(Contribution(event, None, None, "retraction"))
        elif (action := self.policy.actions.get(event.action_type)) is None:
            self.contributions.append(Contribution(event, None, None, "no rule"))
        else:
            self._earn(event, action)

    def _earn(self, event: Event, action: Action) -> None:
        rating = action.rating and rating_of(action.rating, event)
        points = [points_of(emission.points, event) for emission in action.emissions]
        if event.event_id in self.retracted:
            reason = "retracted"
        elif self.suspended:
            reason = "suspended"
        elif None in points or (action.rating is not None and rating is None):
            reason = "unreadable"
        else:
            reason = "granted"
        for emission_no, earned in enumerate(points):
            kept = rating if reason == "granted" and emission_no == 0 else None
            self.contributions.append(Contribution(event, emission_no, earned, reason, kept))

    def _view(self, window: int | None) -> Shown:
        within = [c for c in self.contributions if window is None or c.event.t >= self.as_of - window]
        ratings = [c.rating for c in within if c.rating is not None]
        return Shown(
            score=sum((c.granted for c in within), Fraction(0)),
            events=sum(c.counted for c in within),
            measures={name: measured(ratings, measure) for name, measure in self.policy.all_measures.items()},
            rating_count=len(ratings),
        )
