"""The moment that scores are as of: now, but never before a moment that was derived or published already.

A clock may be set back while a process runs, or between two. Scores stay as of the newest moment then, until the clock
has passed it; new commits are counted meanwhile.
"""

import logging
import time
from datetime import UTC, datetime, timedelta

_LOG = logging.getLogger(__name__)
_TELL_SECONDS = 60.0
MAX_BEHIND = timedelta(hours=24)
"""By how much the clock may lie behind what an earlier process published: beyond that, its clock was wrong."""


class Moments:
    """The moments of one process, in their order."""

    def __init__(self) -> None:
        self._newest: datetime | None = None
        self._behind_since: float | None = None
        self._told: float | None = None

    def next(self) -> datetime:
        """Return now, or the newest moment so far where the clock is behind it; the log says so, once a minute."""
        now = datetime.now(UTC)
        newest = self._newest or now
        self._tell(newest, newest - now)
        self._newest = max(newest, now)
        return self._newest

    def not_before(self, moment: datetime | None) -> None:
        """Keep to what an earlier process has published, or derived, unless that lies a day ahead or more."""
        if moment is not None and moment - datetime.now(UTC) <= MAX_BEHIND:
            self._newest = max(moment, self._newest or moment)

    def _tell(self, newest: datetime, behind: timedelta) -> None:
        now = time.monotonic()
        if behind > timedelta(0):
            self._behind_since = now if self._behind_since is None else self._behind_since
            if self._told is None or now - self._told >= _TELL_SECONDS:
                self._told = now
                _LOG.warning(
                    "the clock is %.1f s behind the last scores, for %.0f s so far: it was set back. Scores stay as of "
                    "%s until the clock has passed that; check the time service of this host",
                    behind.total_seconds(), now - self._behind_since, newest.isoformat(),
                )  # fmt: skip
        elif self._behind_since is not None:
            _LOG.warning("the clock has caught up with the last scores after %.0f s", now - self._behind_since)
            self._behind_since = self._told = None
