"""Topic partitions shared by several ingesters, through the consumer group protocol.

The member of the group learns its assignment and fetches nothing; the source reads the assigned topic partitions from
the lake's checkpoints. During a rebalance two ingesters may read the same records: the lake lets one of them commit
(`fenced`), and the other continues after it.
"""

import time
from collections.abc import Collection, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

from kafka import ConsumerRebalanceListener
from kafka.structs import TopicPartition

from pipelines.bus.clients import consumer, poll_group_member, translate_errors
from pipelines.bus.groups import require_groups
from pipelines.errors import TransientError
from pipelines.settings import KafkaSettings

_POLL_MS = 200
"""A poll is not interrupted, so leaving the group takes up to this long."""
_SESSION_MS = 10_000
"""How long a killed member keeps its topic partitions."""
_METADATA_MS = 10_000
"""How long new topic partitions may stay unassigned, until the group leader learns of them."""


class _AssignmentListener(ConsumerRebalanceListener):
    """Sets an event on the first assignment; the client calls it on a thread of its own."""

    def __init__(self, joined: Event) -> None:
        self._joined = joined

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Do nothing: the next reader starts at the lake's checkpoints."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:  # noqa: ARG002 - as the client calls it
        """Set the event, also for an empty assignment."""
        self._joined.set()


@dataclass(frozen=True, slots=True)
class GroupMember:
    """This ingester's membership of the consumer group; `join_group` makes it."""

    kafka: KafkaSettings
    member: Any
    joined: Event
    polling: "Future[None]"

    def assigned(self) -> frozenset[TopicPartition]:
        """Return the topic partitions assigned to this member; empty if other members have them all.

        Raises TransientError if there is no assignment within the request timeout.
        """
        deadline = time.monotonic() + self.kafka.request_timeout_seconds
        while not self.joined.wait(_POLL_MS / 1000):
            if self.polling.done():
                break
            if time.monotonic() > deadline:
                waited = f"{self.kafka.request_timeout_seconds:.0f} s"
                raise TransientError(
                    f"the consumer group {self.kafka.group_id} assigned no topic partitions within {waited}: "
                    "look at the broker's log and at the group's other members, then start again"
                )
        if self.polling.done():
            self.polling.result()
        return frozenset(self.member.assignment())


@contextmanager
def join_group(kafka: KafkaSettings, topics: Collection[str]) -> Generator[GroupMember]:
    """Yield a membership of the group of `kafka`, for some topics; on exit its topic partitions go to the others.

    The member polls on a thread of its own: the client loses the result of a rebalance between two polls, and a member
    that is busy with a batch would block the rebalance of the whole group. Raises ConfigurationError if the broker has
    no consumer groups.
    """
    options = {
        "group_id": kafka.group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "latest",
        "session_timeout_ms": _SESSION_MS,
        "metadata_max_age_ms": _METADATA_MS,
    }
    require_groups(kafka, "ingest.share_partitions")
    joined, leaving = Event(), Event()
    with consumer(kafka, **options) as member, ThreadPoolExecutor(1, "group") as thread:
        for topic in topics:
            member.partitions_for_topic(topic)  # so that the first assignment by a group leader covers them all
        member.subscribe(list(topics), listener=_AssignmentListener(joined))
        try:
            yield GroupMember(kafka, member, joined, thread.submit(_poll_until, kafka, member, leaving))
        finally:
            leaving.set()


def _poll_until(kafka: KafkaSettings, member: Any, leaving: Event) -> None:
    """Poll as a member until `leaving` is set, with all assigned topic partitions paused."""
    with translate_errors(kafka, f"polling as a member of the consumer group {kafka.group_id}"):
        while not leaving.is_set():
            poll_group_member(member, _POLL_MS, max_records=1)
            member.pause(*member.assignment())
