"""Offsets in the consumer group: advisory, for lag tools; karmalake never reads them back.

They are committed after each batch. After a failure they are retried with a later batch, and at the end; batches in
between do not wait for a coordinator that does not answer.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    NoError,
)
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.errors import KarmalakeError
from pipelines.ingest.batch import OffsetRange

_LOG = logging.getLogger(__name__)
_COORDINATOR_STARTING = (CoordinatorNotAvailableError, CoordinatorLoadInProgressError)
"""A new cluster first creates the offsets topic; a restarted one first loads it."""
_STARTING_SECONDS, _RETRY_SECONDS = 3.0, 0.1
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 2.0, 60.0


@dataclass(slots=True)
class GroupOffsets:
    """The offsets of one consumer group, and those that it does not have yet. Not thread-safe."""

    group_id: str
    commit: Callable[[dict[TopicPartition, int]], None]
    """Commits the next_offset of topic partitions; raises KarmalakeError."""
    _topic_ids: dict[str, str] = field(default_factory=dict[str, str])
    _waiting: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])
    _pause_seconds: float = 0.0
    _next_attempt: float = 0.0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Commit the ends of the ranges, and what a failure left; the first failure in a row is logged.

        After a failure nothing is attempted for 2 s, doubling up to 60 s.
        """
        self._forget_recreated({r.topic: r.topic_id for r in ranges})
        self._waiting |= {TopicPartition(r.topic, r.topic_partition): r.next_offset for r in ranges}
        if time.monotonic() >= self._next_attempt:
            self._attempt()

    def finish(self) -> None:
        """Commit what a failure left once more: no later batch will."""
        if self._waiting:
            self._attempt()

    def _attempt(self) -> None:
        try:
            self.commit(self._waiting)
        except KarmalakeError as error:
            self._failed(error)
        else:
            self._succeeded()

    def _forget_recreated(self, topic_ids: dict[str, str]) -> None:
        """Drop the offsets of deleted topics: they are not those of their successors."""
        same = {name for name, topic_id in self._topic_ids.items() if topic_ids.get(name, topic_id) == topic_id}
        self._waiting = {tp: offset for tp, offset in self._waiting.items() if tp.topic in same}
        self._topic_ids |= topic_ids

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


def alter_offsets(admin: Any, group_id: str, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
    """Commit offsets of a group through the admin client, as no member of it; wait 3 s for a coordinator that starts.

    Raises the error of a topic partition.
    """
    deadline = time.monotonic() + _STARTING_SECONDS
    while True:
        try:
            _alter_offsets_once(admin, group_id, offsets)
        except _COORDINATOR_STARTING:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _alter_offsets_once(admin: Any, group_id: str, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
    """Commit offsets; raise the error of a topic partition, in which a starting coordinator may also say so."""
    for error in filter(lambda error: error is not NoError, admin.alter_group_offsets(group_id, offsets).values()):
        raise error(f"group {group_id}")
