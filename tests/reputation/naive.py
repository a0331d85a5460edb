"""A second implementation of the rules of reputation: event by event, in plain Python, without SQL or columns.

It is independent: it shares the policy model with the engine, and none of the computation.
"""

import calendar
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from functools import cache, partial
from itertools import groupby
from statistics import median

from pipelines.reputation.policy import Policy, Rules
from pipelines.reputation.policy.actions import Action, Condition, Emission, Points, Rating, Weight
from pipelines.reputation.policy.gates import Cap, Completion, Once
from pipelines.reputation.policy.measures import Measure
from pipelines.reputation.policy.scopes import Scope
from pipelines.reputation.policy.time import TimePoints
from tests.reputation.history import DAY, MINUTE, Event, at, us
from tests.reputation.naive_raters import weight_of

_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{1,6}0*)?")


@dataclass
class Contribution:
    """The result of one emission of one event."""

    event: Event
    emission_no: int | None
    emission: Emission | None
    points: Fraction | None
    reason: str
    rating: Fraction | None = None
    weight: Fraction | None = None
    granted: Fraction = Fraction(0)
    counted: bool = False
    related: str | None = None


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
    scopes: dict[str, dict[str, dict[str, Shown]]]
    """The views of each value of each scope."""
    level: tuple[str | None, str | None, Fraction | None] | None = None
    """The level, the next one and the points up to it; None for a policy without levels."""


def number(text: str | None, digits: int) -> Fraction | None:
    """Return the plain decimal number in a text; None for other texts, or more than `digits` decimals."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    value = Fraction(Decimal(text))
    return value if (value * 10**digits).denominator == 1 else None


def points_of(points: Points, event: Event) -> Fraction | None:
    if points.fixed is not None:
        return Fraction(points.fixed)
    text = event.metadata.get(points.key or "")
    if text is None and points.missing is not None:
        return Fraction(points.missing)
    if points.map is not None:
        value = number(text, 6)
        matches = [
            earned
            for key, earned in points.map.items()
            if (key == text if isinstance(key, str) else Fraction(key) == value)
        ]
        return Fraction(matches[0]) if matches else None
    value = number(text, points.digits)
    if value is None or not points.minimum <= value <= points.maximum:
        return None
    return value * Fraction(points.scale)


def rating_of(rating: Rating, event: Event) -> Fraction | None:
    if rating.fixed is not None:
        return Fraction(rating.fixed)
    text = event.metadata.get(rating.key or "")
    if text is None and rating.missing is not None:
        return Fraction(rating.missing)
    if rating.map is not None:
        return Fraction(rating.map[text]) if text in rating.map else None
    value = number(text, rating.digits)
    assert rating.minimum is not None
    assert rating.maximum is not None
    return value if value is not None and rating.minimum <= value <= rating.maximum else None


def weight_of_event(weight: Weight | None, event: Event) -> Fraction | None:
    """Return how much a rating counts, apart from its rater; None if the event does not say so readably."""
    if weight is None or weight.fixed is not None:
        return Fraction(1 if weight is None or weight.fixed is None else weight.fixed)
    text = event.metadata.get(weight.key or "")
    value, other = number(text, weight.digits), weight.missing if text is None else weight.unreadable
    if value is not None and Fraction(weight.minimum or 0) <= value <= Fraction(weight.maximum or 0):
        return value
    return None if other is None else Fraction(other)


def in_millionths(weight: Fraction) -> Fraction:
    """Return a weight without what is below a millionth."""
    return Fraction(int(weight * 10**6), 10**6)


def holds(condition: Condition, text: str | None) -> bool:
    if condition.equals is not None:
        return text == condition.equals
    value = number(text, 6)
    low, high = condition.minimum, condition.maximum
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def measured(
    ratings: list[tuple[Fraction, Fraction, int]], measure: Measure, prior: Fraction | None = None
) -> float | int | None:
    """Return a measure of ratings with weights and times, oldest first; without those that weigh nothing.

    prior: that of the day of the latest rating that weighs anything; None for none.
    """
    if measure.prior and prior is not None:
        measure = measure.model_copy(update={"prior_mean": prior})
    seen = [(rating, recent(weight, t - ratings[-1][2], measure)) for rating, weight, t in ratings]
    used = [(rating, weight) for rating, weight in (seen[-measure.last :] if measure.last else seen) if weight]
    if measure.positive_from is not None and measure.negative_to is not None:
        used = [each for each in used if each[0] >= measure.positive_from or each[0] <= measure.negative_to]
    n = len(used)
    positive = [each for each in used if measure.positive_from is not None and each[0] >= measure.positive_from]
    p = len(positive)
    if measure.formula in ("positives", "negatives"):
        return p if measure.formula == "positives" else n - p
    if n < measure.minimum_count:
        return None if measure.below_minimum is None else float(measure.below_minimum)
    exact = formula(measure, used, sum((weight for _, weight in positive), Fraction(0)))
    return float(exact if measure.digits is None else rounded(exact, measure.digits, measure.rounding))


def recent(weight: Fraction, behind: int, measure: Measure) -> Fraction:
    """Return a weight halved for each half-life that a rating is behind the latest one (a negative time)."""
    if measure.half_life_days is None:
        return weight
    with localcontext() as context:
        context.prec = 50
        share = Decimal(2) ** (Decimal(behind) / DAY / measure.half_life_days) if behind > -DAY * 10**4 else Decimal(0)
        billionths = int((share * 10**9).quantize(Decimal(1), ROUND_HALF_UP))
    return Fraction(int(weight * billionths), 10**9)


def formula(measure: Measure, used: list[tuple[Fraction, Fraction]], p: Fraction) -> Fraction:
    """Return the exact value of a measure over the ratings that it uses; the positive ones weigh p."""
    total = sum((rating * weight for rating, weight in used), Fraction(0))
    n = sum((weight for _, weight in used), Fraction(0))
    match measure.formula:
        case "mean":
            return total / n
        case "median":
            return median(rating for rating, _ in used)
        case "bayesian":
            weight = Fraction(measure.prior_weight or 0)
            return (weight * Fraction(measure.prior_mean or 0) + total) / (weight + n)
        case "beta":
            prior = Fraction(measure.prior_positive)
            return (p + prior) / (n + prior + Fraction(measure.prior_negative))
        case "share":
            return p / n
        case "wilson":
            return wilson(p, n, Decimal(measure.z))
        case other:
            raise AssertionError(f"{other} is a count, or has no naive implementation")


def wilson(positive: Fraction, all_: Fraction, z: Decimal) -> Fraction:
    """Return the lower bound with 15 digits after the point, computed with 50."""
    with localcontext() as context:
        context.prec = 50
        p, n = (Decimal(number.numerator) / number.denominator for number in (positive, all_))
        share = p / n
        spread = z * (share * (1 - share) / n + z * z / (4 * n * n)).sqrt()
        bound = (share + z * z / (2 * n) - spread) / (1 + z * z / n)
        return Fraction(bound.quantize(Decimal("1e-15")))


def rounded(number: Fraction, digits: int, mode: str) -> Fraction:
    scaled = number * 10**digits
    match mode:
        case "half_up":
            units = math.floor(scaled + Fraction(1, 2))
        case "half_even":
            units = round(scaled)
        case "floor":
            units = math.floor(scaled)
        case _:
            units = math.ceil(scaled)
    return Fraction(units, 10**digits)


def reputations(events: Iterable[Event], policy: Policy, as_of: int) -> dict[str, Reputation]:
    """Return the reputation of every user who had an event before as_of."""
    histories: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.t < as_of:
            histories[event.user_id].append(event)
    everything = [event for history in histories.values() for event in history]
    weigh = weight_of(everything, version_at(policy, as_of), rating_of)
    accounts = {user_id: _Account(policy, as_of, history, weigh) for user_id, history in histories.items()}
    given = [each for account in accounts.values() for each in account.given()]
    for account in accounts.values():
        account.prior_of = cache(partial(mean_before, given))
    return {user_id: account.play(list(accounts.values())) for user_id, account in accounts.items()}


def mean_before(given: list[tuple[Fraction, Fraction, date, date]], day: date) -> Fraction | None:
    """Return the mean of the ratings that were given before a day and not retracted by then, with six decimals.

    given: rating, weight, day and last day of each.
    """
    known = [(rating, weight) for rating, weight, first, last in given if first < day <= last]
    total = sum((weight for _, weight in known), Fraction(0))
    return rounded(sum((r * w for r, w in known), Fraction(0)) / total, 6, "half_even") if total else None


def resolved(events: Iterable[Event], merges: Iterable[tuple[str, str]], keys: Iterable[str]) -> list[Event]:
    """Return events under the user_ids that merges leave, one merge after another; `keys` of metadata hold user_ids."""
    persons: list[tuple[str, set[str]]] = []

    def person(name: str) -> tuple[str, set[str]]:
        return next((each for each in persons if name in each[1]), (name, {name}))

    for old, new in merges:
        one, other = person(old), person(new)
        persons = [each for each in persons if each not in (one, other)]
        persons.append((new if one == other else other[0], one[1] | other[1]))
    return [
        replace(
            event,
            user_id=person(event.user_id)[0],
            metadata={key: person(value)[0] if key in keys else value for key, value in event.metadata.items()},
        )
        for event in events
    ]


def version_at(policy: Policy, t: int) -> Rules:
    """Return the version in force at a time."""
    begun = [rules for rules in policy.versions[1:] if rules.effective_from and us(rules.effective_from) <= t]
    return begun[-1] if begun else policy.versions[0]


def bucket(t: int, period: str | None) -> object:
    """Return an identifier of the day, week, month or year."""
    day = at(t).date()
    match period:
        case "day":
            return day
        case "week":
            return day.isocalendar()[:2]
        case "month":
            return day.year, day.month
        case "year":
            return day.year
        case _:
            return None


def later(day: date, every: str, periods: int) -> date:
    """Return the day that is some periods after another; the last one of a month that is too short."""
    if every in ("day", "week"):
        return day + timedelta(days=periods * (7 if every == "week" else 1))
    months = day.year * 12 + day.month - 1 + periods * (12 if every == "year" else 1)
    year, month = months // 12, months % 12 + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


class _Account:
    """One user: applies the events in order, then returns contributions and views."""

    def __init__(self, policy: Policy, as_of: int, history: list[Event], weigh: Callable[[Event], Fraction]) -> None:
        self.whole = policy
        self.weigh = weigh
        self.policy = version_at(policy, as_of)
        self.as_of = as_of
        self.suspended = False
        self.reset_at: int | None = None
        self.history = sorted(history, key=self._order)
        self.by_id = {event.event_id: event for event in history}
        self.retracted: dict[str, str] = {}
        for event in self.history:
            if event.action_type in self.policy.retraction.actions and self.policy.retraction.target in event.metadata:
                self.retracted.setdefault(event.metadata[self.policy.retraction.target], event.event_id)
        self._correct()
        self.contributions: list[Contribution] = []
        self.prior_of: Callable[[date], Fraction | None] = lambda _: None
        self.changes: list[tuple[int, bool]] = []
        """The times at which the status changed, and whether that suspended the user."""

    def _correct(self) -> None:
        """Apply the latest correction to each event that has one."""
        target, actions = self.policy.correction.target, self.policy.correction.actions
        corrections = {
            event.metadata[target]: event.metadata
            for event in self.history
            if event.action_type in actions and target in event.metadata and event.event_id not in self.retracted
        }
        self.history = [
            replace(event, metadata=event.metadata | corrections[event.event_id])
            if event.event_id in corrections and self._is_plain(event)
            else event
            for event in self.history
        ]

    def given(self) -> Iterator[tuple[Fraction, Fraction, date, date]]:
        """Yield each readable rating with its weight, its day and the day on which it was retracted."""
        for event in self.history:
            action = self.rules_of(event).all_actions.get(event.action_type) if self._is_plain(event) else None
            rating = rating_of(action.rating, event) if action and action.rating else None
            weight = weight_of_event(action.rating.weight, event) if action and action.rating else None
            if action is None or rating is None or weight is None:
                continue
            if all(holds(condition, event.metadata.get(key)) for key, condition in action.where.items()):
                withdrawn = self.by_id.get(self.retracted.get(event.event_id, ""))
                last = at(withdrawn.t).date() if withdrawn else date.max
                yield rating, in_millionths(weight * self.weigh(event)), at(event.t).date(), last

    def completed(self, gate: Completion) -> set[str]:
        return {
            event.metadata[gate.key]
            for event in self.history
            if event.action_type in gate.by and gate.key in event.metadata and event.event_id not in self.retracted
        }

    def rules_of(self, event: Event) -> Rules:
        """Return the version that an event's points follow."""
        return version_at(self.whole, event.t) if self.whole.mode == "prospective" else self.policy

    def play(self, accounts: list["_Account"]) -> Reputation:
        for event in self.history:
            self._take(event)
        timed = [c for rules in self.whole.versions for c in self._timed(rules)]
        self.contributions = sorted([*timed, *self.contributions], key=lambda c: c.event.t)
        if self.policy.status.rule == "reset":
            self._reset()
        for rules in self.whole.versions:
            own = [c for c in self.contributions if self.rules_of(c.event) is rules]
            for gate in rules.completion.values():
                keys = {key for account in accounts for key in account.completed(gate)}
                self._complete([c for c in own if c.event.action_type in rules.covered_actions(gate)], gate, keys)
            for once in rules.once.values():
                self._contest([c for c in own if c.event.action_type in rules.covered_actions(once)], once)
            for contribution in own:
                self._grant(contribution)
            for cap in rules.caps.values():
                self._cap([c for c in own if c.event.action_type in rules.covered_actions(cap)], cap)
        windows = {"all_time": None} | {f"last_{days}_days": days * DAY for days in self.policy.windows_days}
        shown = {name: self._view(self.contributions, window) for name, window in windows.items()}
        shown["all_time"] = self._with_bounds(shown["all_time"])
        scopes = {name: self._scope(scope, windows) for name, scope in self.policy.scopes.items()}
        return Reputation("suspended" if self.suspended else "active", shown, self.contributions, scopes, self._level())

    def _timed(self, rules: Rules) -> Iterator[Contribution]:
        """Yield the points from time by one version; what an event earns at the same time comes after them."""
        for name, rule in rules.time.items():
            for t in self._due(rule):
                event = Event("", next(iter(self.by_id.values())).user_id, name, t)
                if self.rules_of(event) is rules:
                    frozen = [suspends for changed, suspends in self.changes if changed <= t][-1:] == [True]
                    reason = "suspended" if frozen and self.policy.status.rule != "hide" else "granted"
                    yield Contribution(event, None, rule.emission, Fraction(rule.points), reason)

    def _due(self, rule: TimePoints) -> Iterator[int]:
        """Yield the times before now at which a rule gives points."""
        times = [
            event.t
            for event in self.history
            if event.event_id not in self.retracted and (not rule.since or event.action_type in rule.since)
        ]
        for number in range(1, (rule.times or 10**6) + 1) if times else ():
            day = later(at(min(times)).date(), rule.every, number)
            t = us(datetime(day.year, day.month, day.day, tzinfo=UTC))
            if t >= self.as_of:
                return
            yield t

    def _scope(self, scope: Scope, windows: dict[str, int | None]) -> dict[str, dict[str, Shown]]:
        """Return the views of each value that a counted event has, from the contributions of its events alone."""
        values: dict[str, list[Contribution]] = defaultdict(list)
        for c in self.contributions:
            text = c.event.metadata.get(scope.key, "")
            value = text if 1 <= len(text) <= 100 else scope.default
            if value is not None and c.emission_no is not None:
                values[value].append(c)
        return {
            value: {name: self._view(own, window) for name, window in windows.items()}
            for value, own in values.items()
            if any(c.counted for c in own)
        }

    def _level(self) -> tuple[str | None, str | None, Fraction | None] | None:
        """Return the level: that of the score, or of the last score after an event that was outside of its bounds."""
        names, levels = list(self.policy.levels), list(self.policy.levels.values())
        if not levels:
            return None
        if self.suspended and self.policy.status.rule == "hide":
            return None, None, None
        decays = any(rules.decays for rules in self.whole.versions)
        score = round(self._bounded(sum((self._decayed(c) for c in self.contributions), Fraction(0))), 12)
        held = 0
        for each in [score] if decays else self._scores():
            while held and each < levels[held - 1].lost_below:
                held -= 1
            while held < len(levels) and each >= levels[held].at:
                held += 1
        name = names[held - 1] if held else None
        return (name, None, None) if held == len(levels) else (name, names[held], Fraction(levels[held].at) - score)

    def _scores(self) -> list[Fraction]:
        """Return the score before the first event, and after each."""
        scores, total = [self._bounded(Fraction(0))], Fraction(0)
        for _, emissions in groupby(self.contributions, key=lambda c: (c.event.event_id, c.event.action_type)):
            total += sum((c.granted for c in emissions), Fraction(0))
            scores.append(self._bounded(total))
        return scores

    def _bounded(self, points: Fraction) -> Fraction:
        own = self.policy.score
        score = points + Fraction(own.start)
        score = score if own.floor is None else max(score, Fraction(own.floor))
        return score if own.ceiling is None else min(score, Fraction(own.ceiling))

    def _order(self, event: Event) -> tuple[int, bool, Fraction, str]:
        key = self.policy.order_by
        row = None if key is None else number(event.metadata.get(key), 6)
        return event.t, not self._is_status(event), Fraction(-(10**12)) if row is None else row, event.event_id

    def _is_status(self, event: Event) -> bool:
        return event.action_type in self.policy.status.suspend + self.policy.status.reinstate

    def _is_plain(self, event: Event | None) -> bool:
        if event is None:
            return False
        special = self.policy.retraction.actions + self.policy.correction.actions
        return not self._is_status(event) and event.action_type not in special

    def _take(self, event: Event) -> None:
        if self._is_status(event):
            self._change_status(event)
        elif event.action_type in self.policy.retraction.actions:
            self._rule(event, self._retraction(event), event.metadata.get(self.policy.retraction.target))
        elif event.action_type in self.policy.correction.actions:
            named = event.metadata.get(self.policy.correction.target)
            if event.event_id in self.retracted:
                self._rule(event, "retracted", self.retracted[event.event_id])
            else:
                self._rule(event, "correction" if self._is_plain(self.by_id.get(named or "")) else "no effect", named)
        elif (action := self.rules_of(event).all_actions.get(event.action_type)) is None:
            self._rule(event, "no rule", self.retracted.get(event.event_id))
        else:
            self._earn(event, action)

    def _rule(self, event: Event, reason: str, related: str | None) -> None:
        self.contributions.append(Contribution(event, None, None, None, reason, related=related))

    def _retraction(self, event: Event) -> str:
        named = event.metadata.get(self.policy.retraction.target, "")
        target = self.by_id.get(named)
        if target is not None and target.action_type in self.policy.retraction.actions:
            return "retraction stands"
        corrects = target is not None and target.action_type in self.policy.correction.actions
        hits = (self._is_plain(target) or corrects) and self.retracted[named] == event.event_id
        return "retraction" if hits else "no effect"

    def _change_status(self, event: Event) -> None:
        suspends = event.action_type in self.policy.status.suspend
        reason = "no effect" if suspends == self.suspended else "status"
        if reason == "status" and not suspends:
            self.reset_at = event.t
        if reason == "status":
            self.changes.append((event.t, suspends))
        self.suspended = suspends
        self.contributions.append(Contribution(event, None, None, None, reason))

    def _earn(self, event: Event, action: Action) -> None:
        rating = action.rating and rating_of(action.rating, event)
        weight = weight_of_event(action.rating.weight, event) if action.rating else Fraction(1)
        points = [points_of(emission.points, event) for emission in action.emissions]
        if event.event_id in self.retracted:
            reason = "retracted"
        elif self.suspended and self.policy.status.rule != "hide":
            reason = "suspended"
        elif not all(holds(condition, event.metadata.get(key)) for key, condition in action.where.items()):
            reason = "not matched"
        elif None in points or weight is None or (action.rating is not None and rating is None):
            reason = "unreadable"
        else:
            reason = "granted"
        for number, (emission, earned) in enumerate(zip(action.emissions, points, strict=True)):
            related = self.retracted.get(event.event_id)
            self.contributions.append(
                Contribution(event, number, emission, earned, reason, rating, weight, related=related)
            )

    def _reset(self) -> None:
        """Void the events before the end of the last suspension, or all while one lasts."""
        for c in self.contributions:
            before = self.suspended or (self.reset_at is not None and c.event.t < self.reset_at)
            if before and c.reason in ("granted", "not matched", "unreadable"):
                c.reason = "reset"

    def _complete(self, own: list[Contribution], gate: Completion, keys: set[str]) -> None:
        for c in own:
            if c.reason == "granted":
                c.reason = "granted" if c.event.metadata.get(gate.key) in keys else "not completed"

    def _contest(self, own: list[Contribution], once: Once) -> None:
        winners: dict[object, str] = {}
        competing = [
            (c, (*map(c.event.metadata.get, once.per), bucket(c.event.t, once.period)))
            for c in own
            if c.reason == "granted"
        ]
        for c, place in competing:
            if once.keep == "last" or place not in winners:
                winners[place] = c.event.event_id
        for c, place in competing:
            if winners[place] != c.event.event_id:
                c.reason = "superseded"

    def _grant(self, c: Contribution) -> None:
        c.counted = c.reason == "granted" and c.emission_no == 0
        c.rating = c.rating if c.counted else None
        if c.reason != "granted" or c.points is None or c.emission is None:
            return
        days = c.emission.penalties_expire_after_days
        if days is not None and c.points < 0 and c.event.t + days * DAY <= self.as_of:
            c.reason = "expired"
        else:
            c.granted = c.points

    def _cap(self, own: list[Contribution], cap: Cap) -> None:
        """Fill each bucket in the order of events; points beyond the cap are not granted."""
        sums: dict[object, Fraction] = defaultdict(Fraction)
        maximum = Fraction(cap.maximum)
        for c in own:
            limited = c.granted if cap.counts == "net" else max(c.granted, Fraction(0))
            if c.reason not in ("granted", "capped"):
                continue
            place = (*map(c.event.metadata.get, cap.per), bucket(c.event.t, cap.period))
            before, after = sums[place], sums[place] + limited
            sums[place] = after
            granted_change = c.granted - limited + min(maximum, after) - min(maximum, before)
            if granted_change != c.granted:
                c.granted, c.reason = granted_change, "capped"

    def _decayed(self, c: Contribution) -> Fraction:
        """Return what remains of the points at the end of the policy's step, to 50 digits."""
        half_life = c.emission.half_life_days if c.emission else None
        if half_life is None:
            return c.granted
        step = self.policy.decay_step_minutes * MINUTE
        end = math.ceil(Fraction(self.as_of, step)) * step
        with localcontext() as context:
            context.prec = 50
            left = Decimal(2) ** (-Decimal(end - c.event.t) / DAY / half_life)
        return c.granted * Fraction(left)

    def _view(self, contributions: list[Contribution], window: int | None) -> Shown:
        policy = self.policy
        within = [c for c in contributions if window is None or c.event.t >= self.as_of - window]
        ratings = [(c.rating, self._weight(c), c.event.t) for c in within if c.rating is not None]
        score = sum((self._decayed(c) for c in within), Fraction(0))
        last = next((c for c in reversed(within) if c.rating is not None and self._weight(c)), None)
        prior = self.prior_of(at(last.event.t).date()) if last else None
        measures = {name: measured(ratings, measure, prior) for name, measure in policy.all_measures.items()}
        if self.suspended and policy.status.rule == "hide":
            score, measures = Fraction(policy.status.shown or 0), dict.fromkeys(measures)
        return Shown(score, sum(c.counted for c in within), measures, len(ratings))

    def _weight(self, c: Contribution) -> Fraction:
        """Return the weight of a rating and of its rater together, in whole millionths."""
        return in_millionths((c.weight or 0) * self.weigh(c.event))

    def _with_bounds(self, shown: Shown) -> Shown:
        """Return the overall view of all time with start, floor and ceiling, unless it is hidden."""
        if self.suspended and self.policy.status.rule == "hide":
            return shown
        return replace(shown, score=self._bounded(shown.score))
