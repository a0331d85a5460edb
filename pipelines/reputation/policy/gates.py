"""The rules between an event and its points: status, retraction, correction, completion, uniqueness and caps."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.reputation.policy.numbers import Name, Names, NonNegative, Number, Section

Period = Literal["day", "week", "month", "year"]
"""A UTC day, a week from Monday, a month, or a year."""


class Status(Section):
    """Which actions suspend and reinstate a user, and what a suspension does."""

    suspend: tuple[Name, ...] = ()
    reinstate: tuple[Name, ...] = ()
    rule: Literal["freeze", "hide", "reset"] = "freeze"
    """`freeze`: events in [suspended, reinstated) earn nothing. `hide`: they earn, but until the reinstatement `shown`
    replaces every score, and measures are null. `reset`: as freeze, and events before the suspension earn nothing."""
    shown: Number | None = None
    """The score of a suspended user under `hide`."""

    @model_validator(mode="after")
    def _shown_when_hidden(self) -> Self:
        if (self.rule == "hide") != (self.shown is not None):
            raise ValueError(
                'shown belongs to rule = "hide", and only there: give the score to show during a suspension'
            )
        return self


class Retraction(Section):
    """Which actions withdraw an earlier (or later) event of the same user. Status events cannot be retracted."""

    actions: tuple[Name, ...] = ()
    target: Name = "target_event_id"
    """The metadata key that holds the event_id of the withdrawn event."""


class Correction(Section):
    """Which actions correct the metadata of an earlier (or later) event of the same user; the latest one stands.

    The correction's metadata override the target's, key by key; the target keeps its time and its action.
    """

    actions: tuple[Name, ...] = ()
    target: Name = "target_event_id"
    """The metadata key that holds the event_id of the corrected event."""


class ActionRule(Section):
    """Base of the rules that apply to several actions."""

    actions: tuple[Name, ...] = ()
    """The actions that the rule applies to; empty: all of the policy."""
    exempt: tuple[Name, ...] = ()
    """Actions that the rule does not apply to."""


class Completion(ActionRule):
    """An event counts only if another event, of any user and at any time before as_of, completes it."""

    by: tuple[Name, ...] = Field(min_length=1)
    """The actions that complete. They need no rule of their own, so a misspelt one is not refused."""
    key: Name
    """The metadata key with the same value in both events; without it an event is not completed."""

    @model_validator(mode="after")
    def _requires_actions(self) -> Self:
        if not self.actions:
            raise ValueError("actions is missing: say which actions need a completion")
        return self


class Once(ActionRule):
    """Of a user's events with the same metadata values in the same period, only one counts."""

    per: Names = ()
    """The metadata key, such as the rater, or several; events without one form a group. Empty: all of the user do."""
    period: Period | None = None
    """None: once for all time."""
    keep: Literal["first", "last"]
    """Which one counts, by the order of events."""

    @model_validator(mode="after")
    def _requires_actions(self) -> Self:
        if not self.actions:
            raise ValueError("actions is missing: say which actions compete")
        return self


class Cap(ActionRule):
    """A user's points per period, and per value of metadata keys, are limited: min(maximum, sum)."""

    period: Period | None = None
    """None: all time."""
    maximum: NonNegative
    counts: Literal["gains", "net"] = "gains"
    """`gains`: losses count in full and do not affect the cap; `net`: they make room under it."""
    per: Names = ()
    """A metadata key, such as the rater, or several; events without one form a group. Empty: all of the user do."""
