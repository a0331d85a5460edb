"""Offsets in the consumer group: advisory, for lag tools; karmalake never reads them back.

They are committed after each batch. After a failure they are retried with a later batch, and batches in between do not
wait for a coordinator that does not answer.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kafka.errors import GroupAuthorizationFailedError

from pipelines.errors import KarmalakeError
from pipelines.ingest.batch import OffsetRange

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 2.0, 60.0


@dataclass(slots=True)
class GroupOffsets:
    """The offsets of one consumer group, and those that it does not have yet. Not thread-safe."""

    group_id: str
    commit: Callable[[dict[int, int]], None]
    """Commits the next_offset of topic partitions; raises KarmalakeError."""
    _topic_id: str = ""
    _waiting: dict[int, int] = field(default_factory=dict[int, int])
    _pause_seconds: float = 0.0
    _next_attempt: float = 0.0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Commit the ends of the ranges, and what a failure left; the first failure in a row is logged.

        After a failure nothing is attempted for 2 s, doubling up to 60 s.
        """
        if ranges[0].topic_id != self._topic_id:  # offsets of a deleted topic are not those of its successor
            self._topic_id, self._waiting = ranges[0].topic_id, {}
        self._waiting |= {r.topic_partition: r.next_offset for r in ranges}
        if time.monotonic() < self._next_attempt:
            return
        try:
            self.commit(self._waiting)
        except KarmalakeError as error:
            self._failed(error)
        else:
            self._succeeded()

    def _failed(self, error: KarmalakeError) -> None:
        if not self._pause_seconds:
            unauthorized = isinstance(error.__cause__, GroupAuthorizationFailedError)
            missing = f": READ on the group {self.group_id} is missing among the ACLs" if unauthorized else ""
            _LOG.warning(
                "offsets of the group %s were not committed (%s)%s; only lag tools read them, ingest continues",
                self.group_id, error, missing,
            )  # fmt: skip
        self._pause_seconds = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _MAX_PAUSE_SECONDS)
        self._next_attempt = time.monotonic() + self._pause_seconds

    def _succeeded(self) -> None:
        if self._pause_seconds:
            _LOG.warning("offsets of the group %s are committed again", self.group_id)
        self._waiting, self._pause_seconds, self._next_attempt = {}, 0.0, 0.0
