"""Levels: names for ranges of the all-time score, and when a user falls from one."""

import re
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import AfterValidator, model_validator

from pipelines.boundary.mistakes import MistakeError
from pipelines.reputation.policy.numbers import Number, Section

MAX_LEVELS = 100
_NAME = re.compile(r"\w[\w -]{0,62}")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a level has letters, digits, spaces and hyphens, at most 63: choose another")
    return name


LevelName = Annotated[str, AfterValidator(_checked)]
"""No name of a level can end a text of a statement."""


class Level(Section):
    """A level: the score that reaches it, which a file writes as the number alone, and the score that loses it."""

    at: Number
    """The level is reached when the score is at least this."""
    falls_below: Number | None = None
    """A level that was reached is lost when the score is below this; None: below `at`."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, dict) and "at" not in value:
            raise ValueError('needs "at": the score that reaches the level')
        return value if isinstance(value, dict | cls) else {"at": value}

    @model_validator(mode="after")
    def _holds_at_its_start(self) -> Self:
        if self.falls_below is not None and self.falls_below > self.at:
            raise ValueError(f"falls_below {self.falls_below} is above at {self.at}: the level would be lost at once")
        return self

    @property
    def lost_below(self) -> Decimal:
        """The score below which the level is lost."""
        return self.at if self.falls_below is None else self.falls_below

    @property
    def depends_on_history(self) -> bool:
        """Whether a score between two bounds keeps the level of the score before it."""
        return self.lost_below != self.at


def check_levels(levels: dict[str, Level], ceiling: Decimal | None) -> None:
    """Raise MistakeError unless every level is above the one before, and can be reached."""
    named = list(levels.items())
    for (lower, before), (name, level) in pairwise(named):
        if level.at <= before.at:
            raise MistakeError(
                ("levels", name), f"begins at {level.at}, and {lower} before it at {before.at}: sort them"
            )
        if level.lost_below < before.lost_below:
            message = (
                f"is lost below {level.lost_below}, and {lower}, a lower level, below {before.lost_below}: raise it"
            )
            raise MistakeError(("levels", name), message)
    if named and ceiling is not None and named[-1][1].at > ceiling:
        raise MistakeError(
            ("levels", named[-1][0]), f"begins above the ceiling of the score, {ceiling}: no score reaches it"
        )
