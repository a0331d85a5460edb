"""One version of a policy: the rules that turn events into points."""

import math
from decimal import Decimal
from itertools import chain
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from pipelines.boundary.mistakes import MistakeError, spelled
from pipelines.reputation.policy.actions import Action, Adjustment, Condition, Emission, EventNumber
from pipelines.reputation.policy.gates import ActionRule, Cap, Completion, Correction, Once, Retraction, Status
from pipelines.reputation.policy.levels import MAX_LEVELS, Level, LevelName, check_levels
from pipelines.reputation.policy.measures import Measure
from pipelines.reputation.policy.numbers import MINUTE_US, Name, Number, Section, Whole, decimals
from pipelines.reputation.policy.raters import Raters
from pipelines.reputation.policy.scopes import Scope, ScopeName
from pipelines.reputation.policy.time import TimePoints

ColumnName = Annotated[
    str,
    spelled(
        r"[a-z][a-z0-9_]{0,62}", "the name of a column is a small letter, then at most 62 small letters, digits and _"
    ),
]
_TAKEN = {"score", "events", "rating_count"}
_DAY_MINUTES = 1_440
_MAX_SCOPES = 8


class Score(Section):
    """Start, floor and ceiling of the all-time score. They do not apply to windows."""

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

    The rules apply in this order: retraction, status, conditions, reading the numbers, completion, once, expiry, caps
    (each kind in the order of the file), decay. A rule does not see events that an earlier one denied.
    """

    version: Name
    effective_from: AwareDatetime | None = None
    """When the version comes into force; the first version of a policy has always been in force."""
    windows_days: tuple[Annotated[Whole, Field(ge=1, le=36_500)], ...] = (7, 30, 90, 365)
    """Lengths N, in days, of the views besides all time: [as_of - N x 86,400 s, as_of)."""
    order_by: Name | None = None
    """The metadata key of a number, such as the row in the source, that orders a user's events of the same time before
    their event_ids do; None: the event_ids alone. The key has to be in the event itself, not in a correction."""
    decay_step_minutes: Annotated[Whole, Field(ge=1, le=_DAY_MINUTES)] = 60
    """Length of the steps in which points decay, which divides a UTC day: scores are those of the end of the step."""
    score: Score = Score()
    status: Status = Status()
    retraction: Retraction = Retraction()
    correction: Correction = Correction()
    actions: dict[Name, Action] = Field(default_factory=dict)
    adjustment: Adjustment | None = None
    """Points by an operator; None: `karmalake adjust` is refused."""
    completion: dict[Name, Completion] = Field(default_factory=dict)
    once: dict[Name, Once] = Field(default_factory=dict)
    caps: dict[Name, Cap] = Field(default_factory=dict)
    time: dict[Name, TimePoints] = Field(default_factory=dict)
    """Points from time alone, by name; a name stands for an action in caps and in explanations."""
    raters: Raters | None = None
    """How much each rater's ratings weigh in the measures; None: all alike."""
    measures: dict[ColumnName, Measure] = Field(default_factory=dict)
    """Measures of the ratings of every view, by column name; may redefine `rating_average`."""
    levels: dict[LevelName, Level] = Field(default_factory=dict, max_length=MAX_LEVELS)
    """Levels of the all-time score by name, the lowest first."""
    scopes: dict[ScopeName, Scope] = Field(default_factory=dict, max_length=_MAX_SCOPES)
    """Reputations beside the overall one, by name."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.windows_days)) != len(self.windows_days):
            raise MistakeError(("windows_days",), "contains a length twice: remove one")
        if taken := sorted(_TAKEN & self.measures.keys()):
            raise MistakeError(("measures", taken[0]), "every view already has a column of this name: choose another")
        check_levels(self.levels, self.score.ceiling)
        self._check_roles()
        self._check_decay_step()
        for kind, rules in {"completion": self.completion, "once": self.once, "caps": self.caps}.items():
            for name, rule in rules.items():
                self._check_actions((kind, name), rule)
        return self

    def _check_roles(self) -> None:
        seen: dict[str, str] = {}
        for role, actions in (self._roles() | {"time": tuple(self.time)}).items():
            for action in actions:
                if action in seen:
                    path = (role, action) if role in ("actions", "time") else tuple(role.split("."))
                    raise MistakeError(path, f"{action} is already in {seen[action]}: an action has one role")
                seen[action] = role

    def _roles(self) -> dict[str, tuple[str, ...]]:
        """Return the action types by the key that gives them their one role."""
        return {
            "status.suspend": self.status.suspend,
            "status.reinstate": self.status.reinstate,
            "retraction.actions": self.retraction.actions,
            "correction.actions": self.correction.actions,
            "adjustment.action": (self.adjustment.action,) if self.adjustment else (),
            "actions": tuple(self.actions),
        }

    def _check_decay_step(self) -> None:
        """Reject a step that would shift from day to day, or in which more than half of the points decays at once."""
        step = self.decay_step_minutes
        if _DAY_MINUTES % step:
            raise MistakeError(
                ("decay_step_minutes",), f"{step} does not divide a day of 1440 minutes: choose 30 or 60"
            )
        lengths = [emission.half_life_us for emission in self.emissions if emission.half_life_us is not None]
        if "decay_step_minutes" in self.model_fields_set and step * MINUTE_US > min(lengths, default=math.inf):
            raise MistakeError(("decay_step_minutes",), f"{step} is longer than a half-life of the policy: shorten it")

    def _check_actions(self, path: tuple[str, ...], rule: ActionRule) -> None:
        known = [*self.actions, *(self.time if isinstance(rule, Cap) else ())]
        for key, names in {"actions": rule.actions, "exempt": rule.exempt}.items():
            if unknown := sorted(set(names) - set(known)):
                message = f"{', '.join(unknown)} is not an action of this policy ({', '.join(known)})"
                raise MistakeError((*path, key), message)

    def covered_actions(self, rule: ActionRule) -> list[str]:
        """Return the actions that a rule applies to; points from time are actions of caps."""
        named = rule.actions or (*self.actions, *self.time)
        return [action for action in named if action not in rule.exempt]

    @property
    def action_types(self) -> list[str]:
        """The types of all events that have a meaning here, of suspensions and retractions too; some twice."""
        completing = (rule.by for rule in self.completion.values())
        return [*chain.from_iterable([*self._roles().values(), *completing])]

    @property
    def all_actions(self) -> dict[str, Action]:
        """The actions that earn points by name: those of the file, and the adjustment."""
        return self.actions | ({self.adjustment.action: self.adjustment.rule} if self.adjustment else {})

    @property
    def conditions(self) -> list[tuple[str, str, Condition]]:
        """The conditions of all actions, each with its action and its metadata key."""
        actions = self.actions.items()
        return [(name, key, condition) for name, action in actions for key, condition in action.where.items()]

    @property
    def metadata_keys(self) -> set[str]:
        """Every metadata key whose values decide what an event does, except those of retractions and corrections."""
        grouped = (*self.once.values(), *self.caps.values())
        numbers: list[EventNumber] = [emission.points for emission in self.emissions]
        ratings = [action.rating for action in self.all_actions.values() if action.rating]
        numbers += [*ratings, *(rating.weight for rating in ratings if rating.weight)]
        keys = {number.key for number in numbers} | {self.order_by}
        keys |= {key for _, key, _ in self.conditions} | {key for rule in grouped for key in rule.per}
        keys |= {each.key for each in (*self.completion.values(), *self.scopes.values(), self.raters) if each}
        return {key for key in keys if key is not None}

    @property
    def emissions(self) -> list[Emission]:
        """Return the emissions of all actions, and of points from time."""
        of_actions = [emission for action in self.all_actions.values() for emission in action.emissions]
        return of_actions + [rule.emission for rule in self.time.values()]

    @property
    def decays(self) -> bool:
        """Whether any points decay; scores are floats then."""
        return any(emission.half_life_days is not None for emission in self.emissions)

    @property
    def all_measures(self) -> dict[str, Measure]:
        """The measures by name: those of the file, and the mean unless the file defines `rating_average`."""
        return {"rating_average": Measure(formula="mean"), **self.measures}

    @property
    def roles(self) -> dict[str, str]:
        """The roles of actions that are rulings: `suspend`, `reinstate`, `retraction` or `correction`."""
        roles = {
            "suspend": self.status.suspend,
            "reinstate": self.status.reinstate,
            "retraction": self.retraction.actions,
            "correction": self.correction.actions,
        }
        return {action: role for role, actions in roles.items() for action in actions}

    @property
    def has_global_prior(self) -> bool:
        """Whether a measure has a prior from all ratings."""
        return any(measure.prior for measure in self.all_measures.values())

    @property
    def recencies_us(self) -> list[int]:
        """The half-lives of the measures, the shortest first, each once."""
        lengths = {measure.half_life_us for measure in self.all_measures.values()}
        return sorted(length for length in lengths if length is not None)

    @property
    def ranks_ratings(self) -> bool:
        """Whether a measure is of the last N ratings, so that ratings have to be ranked."""
        return any(measure.last for measure in self.all_measures.values())

    @property
    def score_digits(self) -> int:
        """The most digits after the point that a score can have; 0 means whole numbers."""
        bounds = [self.score.start, self.score.floor, self.score.ceiling, self.status.shown]
        numbers = [number for number in bounds if number is not None] + [cap.maximum for cap in self.caps.values()]
        point_digits = [emission.points.score_digits for emission in self.emissions]
        return max([*point_digits, *map(decimals, numbers)])

    @property
    def weighs_ratings(self) -> bool:
        """Whether the ratings of an action have weights."""
        return any(action.rating is not None and action.rating.weight is not None for action in self.actions.values())

    @property
    def rating_digits(self) -> int:
        """The most digits after the point that a sum of ratings can have."""
        return max((action.rating.rating_digits for action in self.actions.values() if action.rating), default=0)
