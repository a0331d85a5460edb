"""What stands between an event and its points: status, retraction, correction, completion, uniqueness and caps."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.reputation.policy.numbers import Name, NotNegative, Number, Section

Period = Literal["day", "week", "month"]
"""A UTC day, a week from Monday, or a month."""


class Status(Section):
    """Which actions suspend and reinstate a user, and what a suspension does."""

    suspend: tuple[Name, ...] = ()
    reinstate: tuple[Name, ...] = ()
    rule: Literal["freeze", "hide", "reset"] = "freeze"
    """`freeze`: events in [suspended, reinstated) earn nothing. `hide`: they earn, but until the reinstatement `shown`
    is shown instead of every score, and no measure. `reset`: as freeze, and what was before earns nothing any more."""
    shown: Number | None = None
    """The score of a suspended user under `hide`."""

    @model_validator(mode="after")
    def _shown_when_hidden(self) -> Self:
        if (self.rule == "hide") != (self.shown is not None):
            raise ValueError('shown belongs to rule = "hide", and only there: give the number to show meanwhile')
        return self


class Retraction(Section):
    """Which actions withdraw an earlier (or later) event of the same user. Status events stay what they are."""

    actions: tuple[Name, ...] = ()
    target: Name = "target_event_id"
    """The metadata key that holds the event_id of the withdrawn event."""


class Correction(Section):
    """Which actions correct the metadata of an earlier (or later) event of the same user; the latest one stands.

    The correction's metadata are laid over the target's, which keeps its time and its action.
    """

    actions: tuple[Name, ...] = ()
    target: Name = "target_event_id"
    """The metadata key that holds the event_id of the corrected event."""


class Covers(Section):
    """Base of rules over several actions."""

    actions: tuple[Name, ...] = ()
    """The actions that it is about; none: all of the policy."""
    exempt: tuple[Name, ...] = ()
    """Actions that it is not about."""


class Completion(Covers):
    """An event counts only if another event, of any user and at any time before as_of, completed what it is about."""

    by: tuple[Name, ...] = Field(min_length=1)
    """The actions that complete."""
    key: Name
    """The metadata key that both events carry; without it nothing is completed."""

    @model_validator(mode="after")
    def _of_some(self) -> Self:
        if not self.actions:
            raise ValueError("actions is missing: say which actions need a completion")
        return self


class Once(Covers):
    """Of a user's events with the same metadata key in the same period only one counts."""

    per: Name | None = None
    """The metadata key, such as the rater; events without it are together one. None: one for the user."""
    period: Period | None = None
    """Without it: once for ever."""
    keep: Literal["first", "last"]
    """Which one counts, by the order of events."""

    @model_validator(mode="after")
    def _of_some(self) -> Self:
        if not self.actions:
            raise ValueError("actions is missing: say which actions compete")
        return self


class Cap(Covers):
    """At most so many points of a user, per metadata key, in each period: min(maximum, sum)."""

    period: Period
    maximum: NotNegative
    counts: Literal["gains", "net"] = "gains"
    """`gains`: losses count in full beside the cap; `net`: they make room under it."""
    per: Name | None = None
    """A metadata key, such as the rater; events without it are together one."""
