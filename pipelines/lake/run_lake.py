"""The lake of one run of a process: created at most once, and the same one until the run ends (`nothing-lost`).

A loop that retries would otherwise create an empty lake where a disk was unmounted or a folder removed, and continue
there. A lake that disappears is an outage; another lake in its place is an error that ends the process.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from math import inf

from pipelines.errors import CorruptionError, KarmalakeError, TransientError
from pipelines.lake.tables import Lake, create_lake, is_lake, newest_version, open_lake, stored_id, table_id

OpenLake = Callable[[], Lake]
"""Opens the lake of a run; raises like `RunLake.open`."""
_CHECK_SECONDS = 10.0
"""How often `check` looks: an open handle does not notice that its table is gone."""


class RunLake:
    """The lake at a place, as a run found or created it. Thread-safe: the loops of a process share it."""

    def __init__(self, root: str, first: Callable[[str], Lake] = create_lake) -> None:
        """`first` opens the lake until that succeeds once: `create_lake`, or `await_lake` where others create it."""
        self._root, self._first = root, first
        self._id: str | None = None
        """The lake's `table_id`; None until it was opened."""
        self._last_entry: tuple[int, str] | None = None
        """Version and digest of the last entry seen of the log of `events`; None if unknown."""
        self._check_due = -inf
        """Monotonic time of the next check, in seconds."""
        self._lock = threading.RLock()

    def open(self) -> Lake:
        """Open the lake; only the first success of a run may create it.

        Raises TransientError when the lake of this run is missing, CorruptionError when another one is in its place.
        """
        with self._lock, self.explained():
            self._check_due = -inf
            lake = self._first(self._root) if self._id is None else open_lake(self._root)
            self._require_same(table_id(lake.table("events")))
            self._require_continued(lake)
            self._check_due = time.monotonic() + _CHECK_SECONDS
            return lake

    def check(self) -> None:
        """Require that an opened lake is still there, if no one looked in the last 10 s; raises like `open`."""
        if time.monotonic() < self._check_due:
            return
        with self._lock, self.explained():
            if time.monotonic() >= self._check_due:  # no other loop has looked meanwhile
                self._look()
                self._check_due = time.monotonic() + _CHECK_SECONDS

    @contextmanager
    def explained(self) -> Generator[None]:
        """Replace a permanent error of the block by that of a lake that is missing, or is another one."""
        try:
            yield
        except TransientError:
            raise
        except Exception as error:
            if (cause := self._find_cause()) is not None:
                raise cause from error
            raise

    def _find_cause(self) -> KarmalakeError | None:
        try:
            with self._lock:
                self._look()
        except KarmalakeError as error:
            return error
        return None

    def _look(self) -> None:
        """Require that the lake is there, if it was opened, and the same one."""
        if self._id is None:
            return
        if not is_lake(self._root):
            raise TransientError(
                f"the lake in {self._root} is gone: mount its disk, and the work continues; to continue with a copy, "
                "or to create a new lake there, start again"
            )
        lake = Lake(self._root)
        if stored_id(lake) != self._id:
            self._require_same(table_id(lake.table("events")))
        self._require_continued(lake)

    def _require_same(self, found: str) -> None:
        if self._id not in {None, found}:
            raise CorruptionError(
                f"another lake is in {self._root}: its id is {found}, and this process began with {self._id}; put that "
                "one back, or start again to continue with the lake that is there"
            )
        self._id = found

    def _require_continued(self, lake: Lake) -> None:
        """Require that the log has what was seen of it before: open tables would take files of a copy for unneeded."""
        newest = newest_version(lake)
        if self._last_entry is not None:
            version, digest = self._last_entry
            if newest < version or lake.entry_digest(version) not in {None, digest}:
                raise CorruptionError(
                    f"the lake in {self._root} is another copy of the one that this process began with: version "
                    f"{version} of its events is missing or differs; start again to continue with what is there"
                )
        digest = lake.entry_digest(newest)
        self._last_entry = None if digest is None else (newest, digest)


def await_lake(root: str) -> Lake:
    """Open an existing lake, which another process may still have to create. Raises TransientError if there is none."""
    if not is_lake(root):
        raise TransientError(
            f"there is no lake in {root} yet: start `karmalake stream`, `ingest` or `drain`, which creates it, or "
            "correct data_dir or lake.uri"
        )
    return open_lake(root)
