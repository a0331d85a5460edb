"""One version of a policy: the rules that turn events into points."""

from decimal import Decimal
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from pipelines.reputation.policy.actions import Action, Emission
from pipelines.reputation.policy.gates import Cap, Completion, Correction, Covers, Once, Retraction, Status
from pipelines.reputation.policy.measures import Measure
from pipelines.reputation.policy.numbers import Name, Number, RuleError, Section, decimals

ColumnName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
_TAKEN = {"score", "events", "rating_count"}


class Score(Section):
    """Where the all-time score begins, and between which numbers it is shown. Windows show what they hold."""

    start: Number = Decimal(0)
    floor: Number | None = None
    ceiling: Number | None = None

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.floor is not None and self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(f"floor {self.floor} is above ceiling {self.ceiling}: swap them")
        return self


class Rules(Section):
    """One version of the rules.

    The rules apply in this order: retraction, status, reading the numbers, completion, once, expiry, caps (each kind
    in the order of the file), decay. What one rule denied, the next ones do not see.
    """

    version: Name
    effective_from: AwareDatetime | None = None
    """From when on the version is in force; the first one of a policy is in force from the beginning."""
    windows_days: tuple[Annotated[int, Field(ge=1, le=36_500)], ...] = (7, 30, 90, 365)
    """Lengths of the views beside all time: [as_of - N x 86,400 s, as_of)."""
    score: Score = Score()
    status: Status = Status()
    retraction: Retraction = Retraction()
    correction: Correction = Correction()
    actions: dict[Name, Action] = Field(default_factory=dict)
    completion: dict[Name, Completion] = Field(default_factory=dict)
    once: dict[Name, Once] = Field(default_factory=dict)
    caps: dict[Name, Cap] = Field(default_factory=dict)
    measures: dict[ColumnName, Measure] = Field(default_factory=dict)
    """What ratings come to in every view, by the name of the column; `rating_average` may be defined anew."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.windows_days)) != len(self.windows_days):
            raise RuleError(("windows_days",), "names a length twice: remove one")
        if taken := sorted(_TAKEN & self.measures.keys()):
            raise RuleError(("measures", taken[0]), "every view has a column of this name already: choose another")
        self._check_roles()
        for kind, rules in {"completion": self.completion, "once": self.once, "caps": self.caps}.items():
            for name, rule in rules.items():
                self._check_actions((kind, name), rule)
        return self

    def _check_roles(self) -> None:
        roles = {
            "status.suspend": self.status.suspend,
            "status.reinstate": self.status.reinstate,
            "retraction.actions": self.retraction.actions,
            "correction.actions": self.correction.actions,
            "actions": tuple(self.actions),
        }
        seen: dict[str, str] = {}
        for role, actions in roles.items():
            for action in actions:
                if action in seen:
                    path = tuple(role.split(".")) if role != "actions" else ("actions", action)
                    raise RuleError(path, f"{action} is in {seen[action]} already: an action has one role")
                seen[action] = role

    def _check_actions(self, path: tuple[str, ...], rule: Covers) -> None:
        for key, names in {"actions": rule.actions, "exempt": rule.exempt}.items():
            if unknown := sorted(set(names) - self.actions.keys()):
                message = f"{', '.join(unknown)} is no action of this policy ({', '.join(self.actions)})"
                raise RuleError((*path, key), message)

    def covered(self, rule: Covers) -> list[str]:
        """Return the actions that a rule is about."""
        named = rule.actions or tuple(self.actions)
        return [action for action in named if action not in rule.exempt]

    @property
    def emissions(self) -> list[Emission]:
        """Return the emissions of all actions."""
        return [emission for action in self.actions.values() for emission in action.emissions]

    @property
    def decays(self) -> bool:
        """Whether any points decay: scores are floats then."""
        return any(emission.half_life_days is not None for emission in self.emissions)

    @property
    def all_measures(self) -> dict[str, Measure]:
        """The measures by name: those of the file, and the plain mean unless the file defines `rating_average`."""
        return {"rating_average": Measure(formula="mean"), **self.measures}

    @property
    def score_digits(self) -> int:
        """Digits after the point that a score can have: 0 makes every score a whole number."""
        bounds = [self.score.start, self.score.floor, self.score.ceiling, self.status.shown]
        numbers = [number for number in bounds if number is not None] + [cap.maximum for cap in self.caps.values()]
        of_points = [emission.points.score_digits for emission in self.emissions]
        return max([*of_points, *map(decimals, numbers)])

    @property
    def rating_digits(self) -> int:
        """Digits after the point that a sum of ratings can have."""
        return max((action.rating.digits for action in self.actions.values() if action.rating), default=0)
