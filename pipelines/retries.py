"""Retries of a long-lived loop, with exponential back-off: how long it has been retrying, and when it tries again.

All loops retry the errors that `errors.is_transient` accepts. Durations are measured with a monotonic clock.
"""

import logging
import threading
import time
from collections.abc import Callable

from pipelines.errors import KarmalakeError, TransientError, is_transient, one_line

_LOG = logging.getLogger(__name__)
_INITIAL_DELAY_SECONDS, _MAX_DELAY_SECONDS = 2.0, 15.0

OnIteration = Callable[[str, KarmalakeError | None], None]
"""Called after each iteration of a loop with its name and the outage that ended it, None after a success."""


class Retries:
    """The consecutive failures of the loop `name`. Not thread-safe: for the thread of the loop only."""

    def __init__(self, name: str, stopping: threading.Event, on_iteration: OnIteration) -> None:
        self._name, self._stopping, self._on_iteration = name, stopping, on_iteration
        self._since: float | None = None
        self._delay = _INITIAL_DELAY_SECONDS

    def failed(self, error: Exception) -> None:
        """Report a failed iteration, and wait before the next one: twice as long after each consecutive failure.

        Raises `error` itself if it is not transient.
        """
        if not is_transient(error):
            raise error
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._on_iteration(self._name, _as_outage(error))
        _LOG.warning(
            "%s: %s; retrying for %.0f s so far, next try in %.0f s",
            self._name, one_line(error), now - self._since, self._delay,
        )  # fmt: skip
        self._stopping.wait(self._delay)
        self._delay = min(2 * self._delay, _MAX_DELAY_SECONDS)

    def succeeded(self) -> None:
        """Report a successful iteration, which resets the delay."""
        if self._since is not None:
            _LOG.warning("%s: succeeded after %.0f s of retrying", self._name, time.monotonic() - self._since)
        self._since, self._delay = None, _INITIAL_DELAY_SECONDS
        self._on_iteration(self._name, None)


def _as_outage(error: Exception) -> KarmalakeError:
    return error if isinstance(error, KarmalakeError) else TransientError(f"{type(error).__name__}: {one_line(error)}")
