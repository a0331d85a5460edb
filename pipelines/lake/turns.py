"""Whose turn it is to commit to a table: a courtesy among the processes of one machine, so that none starves.

A committer that was overtaken takes the turn before it looks at the newest version, and keeps it until it has
committed; the others wait for it. So it is overtaken at most once more by each that was past its wait already. Nothing
that is right depends on it: the log alone decides which commit stands (`fenced`). It is a lock on the table's folder,
which a crash releases. A process that is stopped while it has the turn delays a commit by `PATIENCE_SECONDS` at most.
An object store has no locks, and there is no turn in one.
"""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.boundary.file_lock import is_locked, try_lock
from pipelines.errors import ConfigurationError
from pipelines.lake.stores import is_remote

PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.002


@dataclass(slots=True)
class Turn:
    """The turn in one folder, taken or not; `turns` makes it."""

    folder: str
    descriptor: int | None = None

    def wait(self) -> None:
        """Wait until no other committer has the turn, or patience has run out."""
        if self.descriptor is None and not is_remote(self.folder):
            _until(lambda: not is_locked(Path(self.folder)))

    def take(self) -> None:
        """Take the turn, after an overtaking; it is kept until `turns` is left."""
        if self.descriptor is None and not is_remote(self.folder):
            _until(self._is_taken)

    def _is_taken(self) -> bool:
        try:
            self.descriptor = try_lock(Path(self.folder))
        except ConfigurationError:  # a file system without locks
            return True
        return self.descriptor is not None


@contextmanager
def turns(folder: str) -> Generator[Turn]:
    """Yield the turn in a folder, not taken; leaving gives it back."""
    turn = Turn(folder)
    try:
        yield turn
    finally:
        if turn.descriptor is not None:
            os.close(turn.descriptor)


def _until(predicate: Callable[[], bool]) -> None:
    """Ask until the answer is yes, or patience has run out."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not predicate() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
