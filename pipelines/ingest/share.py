"""Topic partitions divided among ingesters, through the consumer group's own protocol.

A member of the group learns what is ours and fetches nothing; the source reads that like any other topic partitions,
from where the lake says. While they move, two ingesters may read the same records: the lake lets one of them commit
(`fenced`), and the other reads on behind it.
"""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from kafka import ConsumerRebalanceListener
from kafka.structs import TopicPartition

from pipelines.emit.clients import consumer
from pipelines.errors import TransientError
from pipelines.settings import KafkaSettings

_POLL_MS = 100
_GLANCE_MS = 20
"""Long enough for the client to go on with a rebalance under way, which nothing but a poll does."""
_SESSION_MS = 10_000
"""How long a member that was killed keeps its topic partitions."""
_METADATA_MS = 10_000
"""How long topic partitions that are new may be nobody's: who leads the group has to hear of them first."""
_MOST_BETWEEN_POLLS_MS = 30 * 60_000
"""A batch may take its time, or many attempts: it is the session that tells who is gone."""


class _Joined(ConsumerRebalanceListener):
    """Notes that the group has come together; the client calls it on a thread of its own."""

    def __init__(self, joined: Event) -> None:
        self._joined = joined

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Need nothing: whoever reads them next starts where the lake says."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:  # noqa: ARG002 - as the client calls it
        """Note it, if it is nothing that was assigned, too."""
        self._joined.set()


@dataclass(slots=True)
class Share:
    """This ingester's membership of the group; `open_share` makes it."""

    kafka: KafkaSettings
    member: Any
    joined: Event = field(default_factory=Event)

    def assigned(self) -> frozenset[int]:
        """Return the topic partitions that are ours, once the group has come together; none if others have them all.

        Raises TransientError when it does not.
        """
        deadline = time.monotonic() + self.kafka.request_timeout_seconds
        self._turn(_GLANCE_MS)
        while not self.joined.is_set():
            if time.monotonic() > deadline:
                waited = f"{self.kafka.request_timeout_seconds:.0f} s"
                raise TransientError(
                    f"the consumer group {self.kafka.group_id} gave out no topic partitions for {waited}"
                )
            self._turn(_POLL_MS)
        return frozenset(place.partition for place in self.member.assignment())

    def _turn(self, wait_ms: int) -> None:
        """Take part in the group; what is ours by now is not fetched."""
        self.member.poll(wait_ms, max_records=1)
        self.member.pause(*self.member.assignment())


@contextmanager
def open_share(kafka: KafkaSettings) -> Generator[Share]:
    """Yield a membership of the group of `kafka`; leaving the block gives its topic partitions to the others."""
    options = {
        "group_id": kafka.group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "latest",
        "session_timeout_ms": _SESSION_MS,
        "max_poll_interval_ms": _MOST_BETWEEN_POLLS_MS,
        "metadata_max_age_ms": _METADATA_MS,
    }
    with consumer(kafka, **options) as member:
        share = Share(kafka, member)
        member.subscribe([kafka.topic], listener=_Joined(share.joined))
        yield share
