"""Waiting for something to become true: the only place of the tests that lets time pass."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 240.0
"""How long a test waits for what a quiet machine does in a moment. Only a hang uses it up, so it costs nothing else."""
_POLL_SECONDS = 0.02

T = TypeVar("T")


def wait_for(what: str, predicate: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Ask `predicate` until it answers something true and return that answer.

    Raises AssertionError naming `what` when `seconds` have passed. An exception of the predicate passes through.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}; the last answer was {answer!r}")
        pause.wait(_POLL_SECONDS)
    return answer
