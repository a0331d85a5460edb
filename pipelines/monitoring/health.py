"""Whether a long-lived process is well: do its loops turn, and has each of them succeeded once.

Loops beside the work (measurements, copies of dead letters) are named when they fail, and make nothing unhealthy.
A service that does not answer is no ailment of ours: a loop that tries again turns, and restarting it would fix
nothing. One that has been retrying for too long is named.
"""

from collections.abc import Iterable, Sequence
from time import monotonic


class Health:
    """The loops of one process, told by their threads."""

    def __init__(self, loops: Iterable[str], stalled_after_seconds: float, beside: Iterable[str] = ()) -> None:
        self._stalled_after = stalled_after_seconds
        self._failed: set[str] = set()
        self._turned = dict.fromkeys(loops, monotonic())
        self._unready = dict.fromkeys(self._turned)
        self._beside = dict.fromkeys(beside, monotonic())
        self._retrying: dict[str, float] = {}
        self.remarks: Sequence[str] = ()
        """Sentences for the operator: what is halted, say."""

    def turned(self, loop: str) -> None:
        """Note that a loop turned, whatever came of it; others than those named at first do not count."""
        if loop in self._turned:
            self._turned[loop] = monotonic()

    def retrying(self, loop: str) -> None:
        """Note that a loop turned in vain, and will try again."""
        self.turned(loop)
        self._retrying.setdefault(loop, monotonic())

    def succeeded(self, loop: str) -> None:
        """Note that a loop turned and did what it is for."""
        self.turned(loop)
        self._retrying.pop(loop, None)
        self._unready.pop(loop, None)
        if loop in self._beside:
            self._beside[loop] = monotonic()

    def failed(self, loop: str) -> None:
        """Note that a bug ended a loop or a part of it; that it began again does not make the process well."""
        self._failed.add(loop)

    def stalled(self) -> list[str]:
        """Return a sentence for each loop that has not turned for too long, or failed once."""
        ages = {loop: monotonic() - turned for loop, turned in list(self._turned.items())}
        late = [f"{loop} has not turned for {age:.0f} s" for loop, age in ages.items() if age > self._stalled_after]
        return late + [f"{loop} failed by a bug, which the log names: restart the process" for loop in self._failed]

    def stale(self) -> list[str]:
        """Return what an operator should see to and no restart would change: no ailment, but news.

        A sentence for each loop that has been retrying, and each beside the work that has not succeeded, for too long;
        and the remarks.
        """
        tries = {loop: monotonic() - since for loop, since in list(self._retrying.items()) if loop in self._turned}
        trying = {loop: age for loop, age in tries.items() if age > self._stalled_after}
        ages = {loop: monotonic() - succeeded for loop, succeeded in list(self._beside.items())}
        late = {loop: age for loop, age in ages.items() if age > self._stalled_after}
        sentences = (f"{loop} has not succeeded for {age:.0f} s: what it tells is old" for loop, age in late.items())
        again = (f"{loop} has been retrying for {age:.0f} s: the log says why" for loop, age in trying.items())
        return [*again, *sentences, *self.remarks]

    def unready(self) -> list[str]:
        """Return a sentence for each loop that has not succeeded yet."""
        return [f"{loop} has not succeeded yet" for loop in list(self._unready)]
