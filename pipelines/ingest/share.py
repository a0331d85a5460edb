"""Topic partitions divided among ingesters, through the consumer group's own protocol.

A member of the group learns what is ours and fetches nothing; the source reads that like any other topic partitions,
from where the lake says. While they move, two ingesters may read the same records: the lake lets one of them commit
(`fenced`), and the other reads on behind it.
"""

import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

from kafka import ConsumerRebalanceListener
from kafka.structs import TopicPartition

from pipelines.bus.clients import consumer, poll_as_member, translated
from pipelines.errors import TransientError
from pipelines.settings import KafkaSettings

_POLL_MS = 500
_SESSION_MS = 10_000
"""How long a member that was killed keeps its topic partitions."""
_METADATA_MS = 10_000
"""How long topic partitions that are new may be nobody's: who leads the group has to hear of them first."""


class _Joined(ConsumerRebalanceListener):
    """Notes that the group has come together; the client calls it on a thread of its own."""

    def __init__(self, joined: Event) -> None:
        self._joined = joined

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Need nothing: whoever reads them next starts where the lake says."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:  # noqa: ARG002 - as the client calls it
        """Note it, if it is nothing that was assigned, too."""
        self._joined.set()


@dataclass(frozen=True, slots=True)
class Share:
    """This ingester's membership of the group; `open_share` makes it."""

    kafka: KafkaSettings
    member: Any
    joined: Event
    taking_part: "Future[None]"

    def assigned(self) -> frozenset[int]:
        """Return the topic partitions that are ours, once the group has come together; none if others have them all.

        Raises TransientError when it does not.
        """
        deadline = time.monotonic() + self.kafka.request_timeout_seconds
        while not self.joined.wait(_POLL_MS / 1000):
            if self.taking_part.done():
                break
            if time.monotonic() > deadline:
                waited = f"{self.kafka.request_timeout_seconds:.0f} s"
                raise TransientError(
                    f"the consumer group {self.kafka.group_id} gave out no topic partitions for {waited}"
                )
        if self.taking_part.done():
            self.taking_part.result()
        return frozenset(place.partition for place in self.member.assignment())


@contextmanager
def open_share(kafka: KafkaSettings) -> Generator[Share]:
    """Yield a membership of the group of `kafka`; leaving the block gives its topic partitions to the others.

    It takes part on a thread of its own: the client loses what a rebalance brought between two polls, and nobody else
    in the group may go on while a member is busy with a batch.
    """
    options = {
        "group_id": kafka.group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "latest",
        "session_timeout_ms": _SESSION_MS,
        "metadata_max_age_ms": _METADATA_MS,
    }
    joined, leaving = Event(), Event()
    with consumer(kafka, **options) as member, ThreadPoolExecutor(1, "group") as thread:
        member.partitions_for_topic(kafka.topic)  # whoever leads the group knows them when it divides them first
        member.subscribe([kafka.topic], listener=_Joined(joined))
        try:
            yield Share(kafka, member, joined, thread.submit(_take_part, kafka, member, leaving))
        finally:
            leaving.set()


def _take_part(kafka: KafkaSettings, member: Any, leaving: Event) -> None:
    """Take part in the group; what is ours is not fetched."""
    with translated(kafka, f"taking part in the consumer group {kafka.group_id}"):
        while not leaving.is_set():
            poll_as_member(member, _POLL_MS, max_records=1)
            member.pause(*member.assignment())
