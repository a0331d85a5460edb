"""What stands between an event and its points: the status of its user, and retractions."""

from typing import Literal

from pipelines.reputation.policy.numbers import Name, Section


class Status(Section):
    """Which actions suspend and reinstate a user, and what a suspension does."""

    suspend: tuple[Name, ...] = ()
    reinstate: tuple[Name, ...] = ()
    rule: Literal["freeze"] = "freeze"
    """`freeze`: events in [suspended, reinstated) earn nothing."""


class Retraction(Section):
    """Which actions withdraw an earlier (or later) event of the same user."""

    actions: tuple[Name, ...] = ()
    target: Name = "target_event_id"
    """The metadata key that holds the event_id of the withdrawn event."""
