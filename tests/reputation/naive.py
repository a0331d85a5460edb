"""The rules of reputation, told a second time: one event at a time, in plain Python, with no SQL and no columns.

An independent reading of the rulings. It shares the policy model with the engine (what a file says), and nothing of
how points come about.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from pipelines.reputation.policy import Action, Points, Policy, Rating
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
    rating_average: float | None
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
            rating_average=float(sum(ratings) / len(ratings)) if ratings else None,
            rating_count=len(ratings),
        )
