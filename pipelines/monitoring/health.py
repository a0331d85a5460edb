"""Health of a long-lived process: whether its loops are running, and whether each has succeeded once.

Background loops (measurements, copies of dead letters) produce warnings when they fail, and never make the process
unhealthy. Neither does an unresponsive service: a loop that retries is running, and a restart would not help. A loop
that retries for too long produces a warning.
"""

from collections.abc import Iterable, Sequence
from time import monotonic


class Health:
    """Tracks the loops of one process; their threads report to it."""

    def __init__(self, loops: Iterable[str], stalled_after_seconds: float, background: Iterable[str] = ()) -> None:
        self._stalled_after = stalled_after_seconds
        self._failed: set[str] = set()
        self._turned = dict.fromkeys(loops, monotonic())
        self._unready = dict.fromkeys(self._turned)
        self._background = dict.fromkeys(background, monotonic())
        self._retrying: dict[str, float] = {}
        self.notices: Sequence[str] = ()
        """Further messages for the operator, such as halted topic partitions."""

    def record_turn(self, loop: str) -> None:
        """Record a turn of a loop, with any result; loops not passed to the constructor are ignored."""
        if loop in self._turned:
            self._turned[loop] = monotonic()

    def record_retry(self, loop: str) -> None:
        """Record a failed turn of a loop that will retry."""
        self.record_turn(loop)
        self._retrying.setdefault(loop, monotonic())

    def record_success(self, loop: str) -> None:
        """Record a successful turn of a loop."""
        self.record_turn(loop)
        self._retrying.pop(loop, None)
        self._unready.pop(loop, None)
        if loop in self._background:
            self._background[loop] = monotonic()

    def record_failure(self, loop: str) -> None:
        """Record that a bug ended a loop or part of it; the process stays unhealthy even if the loop restarts."""
        self._failed.add(loop)

    def problems(self) -> list[str]:
        """Return a message for each loop that has stalled or has failed once: the process is unhealthy."""
        ages = {loop: monotonic() - turned for loop, turned in list(self._turned.items())}
        late = [f"{loop} has not run for {age:.0f} s" for loop, age in ages.items() if age > self._stalled_after]
        return late + [f"{loop} failed because of a bug, see the log: restart the process" for loop in self._failed]

    def warnings(self) -> list[str]:
        """Return messages about problems that a restart would not fix: the process is still healthy.

        One for each loop that has been retrying for too long, one for each background loop that has not succeeded for
        too long, and the notices.
        """
        tries = {loop: monotonic() - since for loop, since in list(self._retrying.items()) if loop in self._turned}
        trying = {loop: age for loop, age in tries.items() if age > self._stalled_after}
        ages = {loop: monotonic() - succeeded for loop, succeeded in list(self._background.items())}
        late = {loop: age for loop, age in ages.items() if age > self._stalled_after}
        sentences = (
            f"{loop} has not succeeded for {age:.0f} s: its metrics are out of date" for loop, age in late.items()
        )
        again = (f"{loop} has been retrying for {age:.0f} s: see the log" for loop, age in trying.items())
        return [*again, *sentences, *self.notices]

    def not_ready(self) -> list[str]:
        """Return a message for each loop that has not succeeded yet."""
        return [f"{loop} has not succeeded yet" for loop in list(self._unready)]
