"""One delivery: a notification, the result of an attempt, and retries. Independent of any transport."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from pipelines.errors import one_line
from pipelines.notify.template import Event, fill

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_OBEYED_SECONDS = 3_600.0


class Outcome(Enum):
    """Whether to attempt a delivery again."""

    DELIVERED = auto()
    RETRY = auto()
    REJECTED = auto()
    ERASED = auto()
    """Nothing was sent, and nothing is to be: the user was erased."""


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The result of an attempt; `reason` explains any outcome but DELIVERED."""

    outcome: Outcome
    reason: str = ""
    retry_after_seconds: float | None = None
    """The earliest next attempt, from now, if the receiver asked for one."""


DELIVERED = DeliveryResult(Outcome.DELIVERED)


@dataclass(frozen=True, slots=True)
class Notification:
    """The notification of one event for one destination; `event.event_id` is its idempotency key."""

    event: Event
    rule: str
    template: str

    @property
    def text(self) -> str:
        """The text of the rule, filled with the fields of the event."""
        return fill(self.template, self.event)


Redact = Callable[[Event], Event | None]
"""Returns what may be sent of an event now, without the names of erased users; None if its own user was erased."""


class Transport(Protocol):
    """A connection to a destination, used by one lane at a time."""

    def attempt(self, notification: Notification) -> DeliveryResult:
        """Deliver once, within the destination's time limit.

        REJECTED is for failures that another attempt cannot change, RETRY for all others. `attempt_delivery` turns
        a raised error into RETRY.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


def attempt_delivery(transport: Transport, notification: Notification) -> DeliveryResult:
    """Attempt a delivery once; any raised error becomes RETRY with the error as reason.

    That includes errors that do not derive from Exception: a panic of a Rust library, or SystemExit. Lanes are threads,
    where no signal handler runs, so none of them asks the process to end.
    """
    try:
        return transport.attempt(notification)
    except BaseException as error:  # noqa: BLE001 - an error must not end the lane
        return DeliveryResult(Outcome.RETRY, describe_error(error))


def describe_error(error: BaseException) -> str:
    """Return an error in one line: its class and its message."""
    return f"{type(error).__name__}: {one_line(error)}"


def deliver_with_retry(
    attempt: Callable[[], DeliveryResult], attempts: int, is_due: Callable[[float], bool]
) -> DeliveryResult:
    """Attempt until the notification is delivered or rejected, has failed `attempts` times, or is no longer due.

    The pause between attempts doubles, up to a minute, with up to half of it as jitter, so that a recovering receiver
    does not get all retries at once.

    is_due: called before each attempt; waits for so many seconds and as long as nothing may be delivered, and returns
    whether to attempt it. If not, the result is RETRY.
    """
    pause, reason = 0.0, ""
    for number in range(1, attempts + 1):
        if not is_due(pause):
            return DeliveryResult(Outcome.RETRY, "stopped before it was delivered")
        answer = attempt()
        if answer.outcome is not Outcome.RETRY:
            return answer
        pause, reason = backoff_seconds(number, answer.retry_after_seconds), answer.reason
    return DeliveryResult(Outcome.REJECTED, f"{reason}, after {attempts} attempts")


def backoff_seconds(failures: int, asked_for: float | None) -> float:
    """Return the pause in seconds after this many failures: at least what the receiver asked for, up to an hour."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 20))
    pause = longest * random.uniform(0.5, 1)  # noqa: S311 # spreads load, not security
    return max(pause, min(asked_for or 0.0, _LONGEST_OBEYED_SECONDS))
