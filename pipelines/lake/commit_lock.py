"""An advisory lock that makes committing to a table fair among the processes of one machine, so that none starves.

A committer that lost the race to another commit acquires the lock before it reads the newest version, and holds it
until it has committed; the others wait until the lock is free. It then loses at most once more to each committer that
had already passed its wait. Correctness never depends on the lock: the log alone decides which commit stands
(`fenced`). It locks the table's folder, and a crash releases it. A stopped process that holds it delays a commit of
another by `LOCK_TIMEOUT_SECONDS` at most. In an object store there is no lock, and both methods return at once.
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

LOCK_TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 0.002


@dataclass(slots=True)
class CommitLock:
    """The lock of one table's folder, acquired or not; `commit_lock` creates it."""

    folder: str
    descriptor: int | None = None
    """The descriptor that holds the lock; None until it is acquired."""

    def wait(self) -> None:
        """Wait until no other committer holds the lock, for `LOCK_TIMEOUT_SECONDS` at most."""
        if self.descriptor is None and not is_remote(self.folder):
            _poll(lambda: not is_locked(Path(self.folder)))

    def acquire(self) -> None:
        """Acquire the lock after a lost race, waiting `LOCK_TIMEOUT_SECONDS` at most; `commit_lock` releases it."""
        if self.descriptor is None and not is_remote(self.folder):
            _poll(self._try_acquire)

    def _try_acquire(self) -> bool:
        try:
            self.descriptor = try_lock(Path(self.folder))
        except ConfigurationError:  # a file system without locks
            return True
        return self.descriptor is not None


@contextmanager
def commit_lock(folder: str) -> Generator[CommitLock]:
    """Yield the lock of a table's folder, not acquired; release it at the end if it was."""
    lock = CommitLock(folder)
    try:
        yield lock
    finally:
        if lock.descriptor is not None:
            os.close(lock.descriptor)


def _poll(predicate: Callable[[], bool]) -> None:
    """Poll until the predicate is true or the timeout has passed."""
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while not predicate() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
