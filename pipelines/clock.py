"""The clock for `as_of`: the current time, but never earlier than a time that was derived or published already.

The system clock may be set back while a process runs or between two processes. `as_of` then stays at the latest time
until the system clock passes it; new commits are still counted.
"""

import logging
import time
from datetime import UTC, datetime, timedelta

_LOG = logging.getLogger(__name__)
_LOG_INTERVAL_SECONDS = 60.0
MAX_CLOCK_SKEW = timedelta(hours=24)
"""The maximum lead of a published time over this clock; a larger one means that the publisher's clock was wrong."""


class MonotonicClock:
    """A clock that never goes back within a process. Not thread-safe."""

    def __init__(self) -> None:
        self._latest: datetime | None = None
        self._behind_since: float | None = None
        self._logged_at: float | None = None

    def now(self) -> datetime:
        """Return the current time in UTC, or the latest time so far if the system clock is behind it.

        Logs a warning at most once a minute while the system clock is behind.
        """
        now = datetime.now(UTC)
        latest = self._latest or now
        self._log_skew(latest, latest - now)
        self._latest = max(latest, now)
        return self._latest

    def advance_to(self, published_at: datetime | None) -> None:
        """Never return a time before one that an earlier process derived or published.

        A time that is more than MAX_CLOCK_SKEW ahead is ignored, as is None.
        """
        if published_at is not None and published_at - datetime.now(UTC) <= MAX_CLOCK_SKEW:
            self._latest = max(published_at, self._latest or published_at)

    def _log_skew(self, latest: datetime, skew: timedelta) -> None:
        now = time.monotonic()
        if skew > timedelta(0):
            self._behind_since = now if self._behind_since is None else self._behind_since
            if self._logged_at is None or now - self._logged_at >= _LOG_INTERVAL_SECONDS:
                self._logged_at = now
                _LOG.warning(
                    "the clock is %.1f s behind the last scores, for %.0f s so far: it was set back. Scores stay as of "
                    "%s until the clock has passed that; check the time service of this host",
                    skew.total_seconds(), now - self._behind_since, latest.isoformat(),
                )  # fmt: skip
        elif self._behind_since is not None:
            _LOG.warning("the clock has caught up with the last scores after %.0f s", now - self._behind_since)
            self._behind_since = self._logged_at = None
