"""What a policy file says without effect: keys that nothing reads, lists that are empty or name something twice.

Only a file is checked for it. A policy that was activated before such a check existed stays readable.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.boundary.mistakes import Place
from pipelines.reputation.policy import Policy, Rules
from pipelines.reputation.policy.actions import Emission
from pipelines.reputation.policy.measures import Measure
from pipelines.reputation.policy.numbers import Section

Found = tuple[Place, str]
"""The path of a key in the model, and what to write."""

_PARAMETERS = {
    "positive_from": ("beta", "wilson", "share", "positives", "negatives"),
    "negative_to": ("beta", "wilson", "share", "positives", "negatives"),
    "prior_mean": ("bayesian",),
    "prior_weight": ("bayesian",),
    "prior_positive": ("beta",),
    "prior_negative": ("beta",),
    "z": ("wilson",),
}
"""The formulas that read a key of a measure."""


def contradictions(policy: Policy) -> Iterator[Found]:
    """Yield everything that a policy says without effect, each with its path."""
    decays = any(rules.decays for rules in policy.versions)
    rates = any(action.rating for rules in policy.versions for action in rules.actions.values())
    for number, rules in enumerate(policy.versions):
        path = ("versions", str(number))
        yield from _lists(path, rules)
        for further, problem in _of_version(rules):
            yield (*path, *further), problem
        if "decay_step_minutes" in rules.model_fields_set and not decays:
            yield (
                (*path, "decay_step_minutes"),
                "is of points that decay: add half_life_days to an action, or remove it",
            )
        if rules.raters is not None and not rates:
            yield (*path, "raters"), "weighs ratings, and no action has one: give an action a rating, or remove it"


def _lists(path: Place, value: Any) -> Iterator[Found]:
    """Yield the lists and tables that are empty, and the lists that name something twice."""
    match value:
        case Section():
            for name in sorted(value.model_fields_set - {"windows_days"}):
                key = type(value).model_fields[name].alias or name
                yield from _lists((*path, key), getattr(value, name))
        case Mapping() | tuple() if not value:
            yield path, "is empty: say what it is of, or remove it"
        case Mapping():
            for key, each in value.items():
                yield from _lists((*path, str(key)), each)
        case tuple():
            names = Counter(each for each in value if isinstance(each, str))
            yield from (
                (path, f"names {name} {count} times: once is enough") for name, count in names.items() if count > 1
            )
            for number, each in enumerate(value):
                yield from _lists((*path, str(number)), each)
        case _:
            pass


def _of_version(rules: Rules) -> Iterator[Found]:
    yield from _of_rulings(rules)
    for kind, gates in {"completion": rules.completion, "once": rules.once, "caps": rules.caps}.items():
        for name, gate in gates.items():
            if gate.actions and gate.exempt:
                yield (kind, name, "exempt"), "is of a rule for all actions: remove it, and leave them out of actions"
    for name, action in rules.actions.items():
        for number, emission in enumerate(action.emit):
            if emission.penalties_expire_after_days is not None and not _has_losses(emission):
                path = ("actions", name, "emit", str(number), "penalties_expire_after_days")
                yield path, "is of points below zero, and there are none: remove it"
    for name, measure in rules.measures.items():
        yield from ((("measures", name, key), problem) for key, problem in _of_measure(measure))


def _of_rulings(rules: Rules) -> Iterator[Found]:
    for table, key in {"status": "suspend", "retraction": "actions", "correction": "actions"}.items():
        if table in rules.model_fields_set and key not in getattr(rules, table).model_fields_set:
            yield (table,), f"has no effect without {key}: add it, or remove [{table}]"


def _has_losses(emission: Emission) -> bool:
    """Return whether an event can earn points below zero."""
    points = emission.points
    if points.fixed is not None:
        return points.fixed < 0
    if points.map is not None:
        return min(*points.map.values(), points.missing or 0, 0) < 0
    return min(points.minimum * points.scale, points.maximum * points.scale, points.missing or 0) < 0


def _of_measure(measure: Measure) -> Iterator[tuple[str, str]]:
    for key, formulas in _PARAMETERS.items():
        if key in measure.model_fields_set and measure.formula not in formulas:
            yield key, f"is of {', '.join(formulas)}, and the formula is {measure.formula}: remove it"
    if "rounding" in measure.model_fields_set and measure.digits is None:
        yield "rounding", "rounds to digits: add digits, or remove it"
