"""Raters' weights in plain Python: EigenTrust over who rated whom before a day, in whole numbers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from fractions import Fraction
from functools import cache

from pipelines.reputation.policy import Rules
from pipelines.reputation.policy.actions import Rating
from tests.reputation.history import Event, at

WHOLE = 10**12
Read = Callable[[Rating, Event], Fraction | None]


def trust(local: Mapping[tuple[str, str], int], seeds: set[str], damping: int, rounds: int) -> dict[str, int]:
    """Return each user's trust by the published formula.

    local: opinions by rater and rated user, in thousandths; damping is in millionths.
    """
    good = defaultdict[str, dict[str, int]](dict)
    for (rater, user), opinion in local.items():
        if opinion > 0:
            good[rater][user] = min(opinion, 9_000_000)
    trusted = dict.fromkeys(seeds, WHOLE // len(seeds))
    for _ in range(rounds):
        flows = defaultdict[str, int](int)
        for rater, row in good.items():
            for user, opinion in row.items():
                flows[user] += trusted.get(rater, 0) * opinion // sum(row.values())
        passed = {user: flow * (10**6 - damping) // 10**6 for user, flow in flows.items()}
        rest = (WHOLE - sum(passed.values())) // len(seeds)
        trusted = {user: passed.get(user, 0) + rest * (user in seeds) for user in {*passed, *seeds}}
    return {user: amount for user, amount in trusted.items() if amount}


def weights(trusted: Mapping[str, int]) -> dict[str, int]:
    """Return what trusted users weigh, in millionths."""
    return {user: min(10**6, amount * len(trusted) // 10**6) for user, amount in trusted.items()}


def weight_of(events: Iterable[Event], rules: Rules, read: Read) -> Callable[[Event], Fraction]:
    """Return a function that says what the rating of an event weighs, from 0 to 1.

    rules: the version in force; read: reads the rating of an event.
    """
    raters, known = rules.raters, sorted(events, key=lambda event: (event.t, event.event_id))
    if raters is None:
        return lambda _: Fraction(1)
    withdrawn = dict[tuple[str, str | None], date]()
    for event in known:
        if event.action_type in rules.retraction.actions:
            withdrawn.setdefault((event.user_id, event.metadata.get(rules.retraction.target)), at(event.t).date())

    @cache
    def of_day(day: date) -> dict[str, int]:
        local = defaultdict[tuple[str, str], int](int)
        for event in known:
            rater, last = event.metadata.get(raters.key), withdrawn.get((event.user_id, event.event_id))
            if at(event.t).date() < day and (last is None or last >= day) and rater not in (None, event.user_id):
                local[rater, event.user_id] += _opinion(event, rules, read)
        share = {"damping": int(raters.damping * 10**6), "rounds": raters.rounds}
        return weights(trust(local, {*raters.seeds}, **share))

    def weigh(event: Event) -> Fraction:
        found = of_day(at(event.t).date()).get(event.metadata.get(raters.key, ""), 0)
        return max(Fraction(found, 10**6), Fraction(raters.minimum))

    return weigh


def _opinion(event: Event, rules: Rules, read: Read) -> int:
    """Return the place of a rating on its scale, from -1000 to 1000, cut off towards zero; 0 for none."""
    action = rules.actions.get(event.action_type)
    value = read(action.rating, event) if action and action.rating else None
    if action is None or action.rating is None or value is None:
        return 0
    ratings = [each.rating for each in rules.actions.values() if each.rating is not None]
    listed = [Fraction(rating.fixed) for rating in ratings if rating.fixed is not None]
    if action.rating.map is not None:
        listed = [Fraction(number) for number in action.rating.map.values()]
    elif action.rating.fixed is None:
        listed = [Fraction(action.rating.minimum or 0), Fraction(action.rating.maximum or 0)]
    low, high = min(listed), max(listed)
    if low == high:
        return 1000 * ((value > 0) - (value < 0))
    return int((2 * value - low - high) * 1000 / (high - low))
