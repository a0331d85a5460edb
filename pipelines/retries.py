"""The failures in a row of a long-lived loop: for how long it has been retrying, and when it tries again.

Which errors another try may cure is `errors.may_pass`, for all loops the same. Times are those of a monotonic clock.
"""

import logging
import threading
import time
from collections.abc import Callable

from pipelines.errors import KarmalakeError, TransientError, may_pass, one_line

_LOG = logging.getLogger(__name__)
_FIRST_SECONDS, _LONGEST_SECONDS = 2.0, 15.0

OnTurn = Callable[[str, KarmalakeError | None], None]
"""Hears of each turn of a loop, and of the outage that ended it, if one did."""


class Retries:
    """The failures in a row of the loop `name`. For use by its thread alone."""

    def __init__(self, name: str, stopping: threading.Event, on_turn: OnTurn) -> None:
        self._name, self._stopping, self._on_turn = name, stopping, on_turn
        self._since: float | None = None
        self._delay = _FIRST_SECONDS

    def failed(self, error: Exception) -> None:
        """Report a turn that failed, and wait before the next one: longer with each failure in a row.

        Raises the error itself if another try cannot cure it.
        """
        if not may_pass(error):
            raise error
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._on_turn(self._name, _as_outage(error))
        _LOG.warning(
            "%s: %s; retrying for %.0f s so far, next try in %.0f s",
            self._name, one_line(error), now - self._since, self._delay,
        )  # fmt: skip
        self._stopping.wait(self._delay)
        self._delay = min(2 * self._delay, _LONGEST_SECONDS)

    def succeeded(self) -> None:
        """Report a turn that did what it is for."""
        if self._since is not None:
            _LOG.warning("%s: succeeded after %.0f s of retrying", self._name, time.monotonic() - self._since)
        self._since, self._delay = None, _FIRST_SECONDS
        self._on_turn(self._name, None)


def _as_outage(error: Exception) -> KarmalakeError:
    return error if isinstance(error, KarmalakeError) else TransientError(f"{type(error).__name__}: {one_line(error)}")
