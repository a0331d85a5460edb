"""Polling for a condition: the only place where tests sleep."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 240.0
"""The timeout of conditions that an idle machine reaches at once; only a hang waits this long."""
_POLL_SECONDS = 0.02

T = TypeVar("T")


def wait_for(description: str, predicate: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Call `predicate` until its result is true, and return the result.

    Raises AssertionError with `description` after `seconds`. Exceptions of the predicate propagate.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    asked = time.monotonic()
    while not (result := predicate()):
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(
                f"timed out after {seconds:g} s waiting for {description}; the last result was {result!r}"
            )
        pause.wait(max(_POLL_SECONDS, 4 * (now - asked)))  # a costly one leaves the processor to what it waits for
        asked = time.monotonic()
    return result
