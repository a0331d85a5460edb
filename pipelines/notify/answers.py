"""What became of one attempt to deliver, and of the last of several: pure of any transport."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from pipelines.errors import one_line
from pipelines.notify.template import Event

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_OBEYED_SECONDS = 3_600.0


class Verdict(Enum):
    """What an attempt says about the next one."""

    TAKEN = auto()
    LATER = auto()
    NEVER = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of an attempt; of anything but TAKEN, why."""

    verdict: Verdict
    reason: str = ""
    after_seconds: float | None = None
    """When the receiver wants to be asked again, if it said so."""


TAKEN = Answer(Verdict.TAKEN)


@dataclass(frozen=True, slots=True)
class Notification:
    """What one destination is told of one event; `event.event_id` is its idempotency key."""

    event: Event
    rule: str
    text: str


class Transport(Protocol):
    """A way to a destination; used by one lane at a time."""

    def attempt(self, notification: Notification) -> Answer:
        """Deliver once, within the destination's time limit.

        NEVER is for what no other attempt can change; LATER for the rest; `attempted` makes it of whatever is raised.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def attempted(transport: Transport, notification: Notification) -> Answer:
    """Return the answer of one attempt: LATER, with the error, whatever was raised instead of one.

    That is also what does not derive from Exception: a panic of a library in Rust, or an exit that it asks for.
    """
    try:
        return transport.attempt(notification)
    except BaseException as error:  # noqa: BLE001 - a lane that ends by an answer would deliver nothing any more
        return Answer(Verdict.LATER, described(error))


def described(error: BaseException) -> str:
    """Return an error in one line: its class, and what it says."""
    return f"{type(error).__name__}: {one_line(error)}"


def insist(attempt: Callable[[], Answer], attempts: int, stopping: threading.Event) -> Answer:
    """Attempt until it is taken, refused for good, has failed `attempts` times or `stopping` is set.

    Between attempts the pause doubles, up to a minute, and a random part of up to a half is left out, so that
    receivers which come back are not met by everybody at once. An answer of LATER tells that `stopping` cut it short.
    """
    for number in range(1, attempts + 1):
        answer = attempt()
        if answer.verdict is not Verdict.LATER:
            return answer
        if number == attempts:
            return Answer(Verdict.NEVER, f"{answer.reason}, after {attempts} attempts")
        if stopping.wait(pause_seconds(number, answer.after_seconds)):
            break
    return Answer(Verdict.LATER, "ended before it was delivered")


def pause_seconds(failures: int, asked_for: float | None) -> float:
    """Return how long to wait after so many failures: never less than the receiver asked for, up to an hour."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 20))
    pause = longest * random.uniform(0.5, 1)  # noqa: S311 # spreads load, guards nothing
    return max(pause, min(asked_for or 0.0, _LONGEST_OBEYED_SECONDS))
