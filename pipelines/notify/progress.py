"""Whether a destination that reads nothing has nothing to read.

A client that waits for its group, has an empty assignment or lost track of a fetch polls on and returns nothing, as at
the end of a topic. `Watch` tells them apart: it raises an error, which is reported, and the branch joins its group
again and continues at its checkpoints.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from kafka.errors import KafkaTimeoutError
from kafka.structs import MemberState, TopicPartition  # pyright: ignore[reportAttributeAccessIssue] - outdated stubs

from pipelines.bus.clients import admin_client
from pipelines.settings import KafkaSettings

_REQUEST_TIMEOUTS = 2
"""How long a member may be stuck: a request that gets no response fails, and is repeated, after one."""


@dataclass(slots=True)
class Watch:
    """Watches one member of a consumer group, from its first poll on."""

    kafka: KafkaSettings
    group_id: str
    waits_since: float | None = None
    """When the member began to wait for the first checkpoints of its group, which another one commits."""
    _stable_at: float = field(default_factory=monotonic)
    _assigned_at: float = field(default_factory=monotonic)
    _compared_at: float = field(default_factory=monotonic)
    _behind: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])
    """Positions with records above them, of topic partitions that could be read in each turn since the comparison."""

    def check(self, member: Any, readable: Iterable[TopicPartition]) -> None:
        """Raise KafkaTimeoutError if the member is stuck; call it after each poll.

        readable: the topic partitions of which that poll would have returned records, if it had any.
        """
        now, limit = monotonic(), _REQUEST_TIMEOUTS * self.kafka.request_timeout_seconds
        if member.group_metadata().state == MemberState.STABLE:
            self._stable_at = now
        elif now - self._stable_at > limit:
            raise KafkaTimeoutError(f"the group {self.group_id} has assigned no topic partitions for {limit:g} s")
        if member.assignment():
            self._assigned_at = now
        elif now - self._assigned_at > limit:
            self._assigned_at = now
            self._require_other_members()
        if self.waits_since is not None and now - self.waits_since > limit:
            raise KafkaTimeoutError(
                f"the group {self.group_id} waits for its first checkpoints for {limit:g} s: the owner of the topic's "
                "first partition commits them"
            )
        places = set(readable)
        self._behind = {place: at for place, at in self._behind.items() if place in places}
        if now - self._compared_at > limit:
            self._compared_at = now
            self._compare(member, places)

    def _require_other_members(self) -> None:
        with admin_client(self.kafka) as admin:
            members = admin.describe_groups([self.group_id])[self.group_id]["members"]
        if len(members) < 2:
            raise KafkaTimeoutError(f"the group {self.group_id} has one member, without topic partitions")

    def _compare(self, member: Any, places: Iterable[TopicPartition]) -> None:
        """Compare positions with those of the last comparison, and with the ends of the topic partitions."""
        positions = {place: at for place in places if (at := member.position(place)) is not None}
        for place, at in positions.items():
            if self._behind.get(place) == at:
                raise KafkaTimeoutError(
                    f"records of {place.topic}-{place.partition} remain from offset {at} on, but none were received"
                )
        ends = member.end_offsets(list(positions)) if positions else {}
        self._behind = {place: at for place, at in positions.items() if ends[place] > at}
