"""A policy as a whole: the versioned rules that turn events into points."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipelines.reputation.policy.actions import Action
from pipelines.reputation.policy.gates import Retraction, Status
from pipelines.reputation.policy.measures import Measure
from pipelines.reputation.policy.numbers import Name, Section

MeasureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class Policy(Section):
    """The versioned rules that turn events into points."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    version: Name
    description: str = ""
    windows_days: tuple[Annotated[int, Field(ge=1, le=36_500)], ...] = (7, 30, 90, 365)
    """Lengths of the views beside all time: [as_of - N x 86,400 s, as_of)."""
    status: Status = Status()
    retraction: Retraction = Retraction()
    actions: dict[Name, Action] = Field(default_factory=dict)
    measures: dict[MeasureName, Measure] = Field(default_factory=dict)
    """What ratings come to in every view, by the name of the column; `rating_average` may be defined anew."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.windows_days)) != len(self.windows_days):
            raise ValueError("windows_days names a length twice")
        if taken := sorted({"score", "events", "rating_count"} & self.measures.keys()):
            raise ValueError(f"measures.{taken[0]}: every view has a column of this name already: choose another")
        roles = [*self.status.suspend, *self.status.reinstate, *self.retraction.actions, *self.actions]
        twice = sorted({action for action in roles if roles.count(action) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands in two roles: an action earns, or changes status, or retracts")
        return self

    @property
    def score_digits(self) -> int:
        """Digits after the point that a score can have: 0 makes every score a whole number."""
        emissions = [emission for action in self.actions.values() for emission in action.emissions]
        return max((emission.points.score_digits for emission in emissions), default=0)

    @property
    def all_measures(self) -> dict[str, Measure]:
        """The measures by name: those of the file, and the plain mean unless the file defines `rating_average`."""
        return {"rating_average": Measure(formula="mean"), **self.measures}

    @property
    def rating_digits(self) -> int:
        """Digits after the point that a sum of ratings can have."""
        return max((action.rating.digits for action in self.actions.values() if action.rating), default=0)
