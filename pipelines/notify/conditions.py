"""The conditions of rules on metadata, and whether they can ever be met. Pure.

Of events nothing is known, so only conditions that contradict each other are found. A change has the keys of
`changes.py`; its direction and status have few values, and so has its level once the policy is known.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.boundary.toml import did_you_mean
from pipelines.contract.change_causes import CAUSES, START
from pipelines.notify.changes import DIRECTIONS, METADATA, STATUSES, Kind

Number = Annotated[Decimal, Field(allow_inf_nan=False)]
_CAUSES = "causes"
_NO_VALUE = ""
"""What `before` of a new user is, and `after` of one who is shown no more."""


class Table(BaseModel):
    """A table of a rule file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Condition(Table):
    """A condition on one metadata entry of an event; an event without the entry does not meet it."""

    key: str
    equal: str | None = None
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.equal is None and self.at_least is None and self.at_most is None:
            raise ValueError("has no condition: give equal, at_least or at_most")
        return self

    def is_met(self, metadata: Mapping[str, str]) -> bool:
        """Return whether the metadata meets it; a value that is not a number fails `at_least` and `at_most`."""
        value = metadata.get(self.key)
        if value is None or (self.equal is not None and value != self.equal):
            return False
        if self.at_least is None and self.at_most is None:
            return True
        number = _number(value)
        return number is not None and _within(number, self.at_least, self.at_most)


@dataclass(frozen=True, slots=True)
class PolicyNames:
    """What changes of a policy can be about."""

    policy: str
    columns: Sequence[str]
    """Of `reputation`, each of which belongs to a view."""
    levels: Sequence[str]
    causes: Collection[str]


def unknown_causes(causes: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with names of causes."""
    for cause in causes:
        if cause == START:
            yield f"names the cause {START!r}, of the first publication, which notifies no one: remove it"
        elif cause not in CAUSES:
            meant = did_you_mean(cause, CAUSES) or f": it has {', '.join(CAUSES)}"
            yield f"names the cause {cause!r}, which no change has{meant}"


def unknown_keys(keys: Iterable[str], conditions: Iterable[Condition]) -> Iterator[str]:
    """Yield what is wrong with the metadata keys of a rule about changes: those of its text, and of its conditions."""
    conditioned = [condition.key for condition in conditions]
    if _CAUSES in conditioned:
        yield f"has a condition on {_CAUSES!r}, which may be several: write causes or not_causes in the rule"
    for key in [*conditioned, *keys]:
        if key not in METADATA:
            meant = did_you_mean(key, METADATA) or f": it has {', '.join(METADATA)}"
            yield f"names the metadata key {key!r}, which no change has{meant}"


def impossible(kinds: Sequence[Kind], when: Sequence[Condition], levels: Sequence[str] | None = None) -> str | None:
    """Return why no change of these kinds, or no event without any, meets all conditions; None if one may.

    levels: the names of the policy's levels; None if they are not known.
    """
    problems = [_impossible(kind, when, levels) for kind in kinds or (None,)]
    return None if None in problems else problems[0]


def _impossible(kind: Kind | None, when: Sequence[Condition], levels: Sequence[str] | None) -> str | None:
    for key in dict.fromkeys(condition.key for condition in when):
        conditions = [condition for condition in when if condition.key == key]
        known = None if kind is None else _known_values(kind, key, levels)
        values = _named_values(conditions) if known is None else known
        if not any(all(each.is_met({key: value}) for each in conditions) for value in values):
            return _explain(kind, key, conditions, known)
    before, after = ({each.equal for each in when if each.key == key} - {None} for key in ("before", "after"))
    same = before & after
    if kind is not None and same:
        return f"never applies: no change is from {same.pop()!r} to the same value"
    return None


def _known_values(kind: Kind, key: str, levels: Sequence[str] | None) -> Sequence[str] | None:
    """Return all values of a key in changes of a kind; None if they are not known."""
    if key == "direction":
        return DIRECTIONS
    if key not in {"before", "after"} or kind == "score.changed":
        return None
    if kind == "status.changed":
        return [*STATUSES, _NO_VALUE]
    return levels and [*levels, _NO_VALUE]


def _named_values(conditions: Iterable[Condition]) -> Iterator[str]:
    """Yield the values that conditions name: if any value meets all of them, one of these does."""
    for each in conditions:
        yield from (str(value) for value in (each.equal, each.at_least, each.at_most) if value is not None)


def _explain(kind: Kind | None, key: str, conditions: Sequence[Condition], known: Sequence[str] | None) -> str:
    if known is None:
        return f"never applies: no value of {key!r} meets all of its conditions"
    named = next((each.equal for each in conditions if each.equal is not None and each.equal not in known), None)
    values = f": it is {' or '.join(filter(None, known))}"
    if named is None:
        return f"never applies: no value of {key!r} in {kind} meets all of its conditions{values}"
    return f"never applies: {key!r} in {kind} is never {named!r}{did_you_mean(named, known) or values}"


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except (ArithmeticError, ValueError):
        return None
    return number if number.is_finite() else None


def _within(number: Decimal, least: Decimal | None, most: Decimal | None) -> bool:
    return (least is None or number >= least) and (most is None or number <= most)
