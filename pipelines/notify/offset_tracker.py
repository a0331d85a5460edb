"""Offsets of a destination by topic partition: the checkpoint below which every delivery is done. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.notify.lanes import Delivery


@dataclass(slots=True)
class _Partition:
    next_offset: int | None = None
    """None until records are read after the assignment."""
    started: bool = False
    """False until `resolve_start` was called after the assignment."""
    committed: int | None = None
    """The checkpoint of the group, as far as it is known."""
    pending: dict[int, Delivery] = field(default_factory=dict)

    def checkpoint(self) -> int | None:
        """Return the lowest offset not done: after a rebalance the reader may start below earlier deliveries."""
        return None if self.next_offset is None else min([self.next_offset, *self.pending])


class OffsetTracker:
    """Tracks the topic partitions that are assigned to this notifier."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._revoked: dict[int, int | None] = {}
        """Topic partitions revoked since the last assignment, with their checkpoints at that time."""

    def assign(self, partitions: Iterable[int]) -> None:
        """Start tracking topic partitions that are newly assigned, or assigned again."""
        self._partitions |= {partition: _Partition(self._revoked.get(partition)) for partition in partitions}
        self._revoked = {}

    def is_positioned(self, partition: int) -> bool:
        """Return whether polled records of a topic partition continue from those read before."""
        return partition in self._partitions and self._partitions[partition].started

    def next_offset(self, partition: int) -> int | None:
        """Return the offset that is read next if none is missing; None if the group has no checkpoint that is known."""
        state = self._partitions[partition]
        return state.committed if state.next_offset is None else state.next_offset

    def restart(self, partition: int) -> None:
        """Read a topic partition from wherever its reader was moved to."""
        if (state := self._partitions.get(partition)) is not None:
            state.next_offset = state.committed = None

    def resolve_start(self, partition: int, polled_from: int | None, committed: int | None = None) -> int | None:
        """Return the offset to seek to before reading a newly assigned topic partition; None if no seek is needed.

        The reader has moved past records that it polled before the assignment took effect, and, for a topic partition
        that is assigned again, past deliveries that were revoked.
        committed: the checkpoint of the group, where it is known.
        """
        state = self._partitions.get(partition, _Partition())
        state.started, state.committed = True, committed
        return min((at for at in (polled_from, state.next_offset) if at is not None), default=None)

    def record_read(self, partition: int, next_offset: int, deliveries: Iterable[Delivery]) -> None:
        """Record that the records below next_offset were read, and the deliveries among those read now."""
        known = self._partitions[partition]
        known.next_offset = next_offset
        known.pending |= {delivery.record.offset: delivery for delivery in deliveries}

    def mark_done(self, delivery: Delivery) -> None:
        """Record that a delivery is complete: delivered, or a dead letter."""
        if not delivery.revoked:
            del self._partitions[delivery.record.partition].pending[delivery.record.offset]

    def checkpoints(self) -> dict[int, int]:
        """Return the checkpoint of each topic partition where it differs from the committed one."""
        states = ((number, state.checkpoint(), state.committed) for number, state in self._partitions.items())
        return {number: at for number, at, committed in states if at is not None and at != committed}

    def mark_committed(self, checkpoints: dict[int, int]) -> None:
        """Record the committed checkpoints."""
        for partition, next_offset in checkpoints.items():
            self._partitions[partition].committed = next_offset

    def revoke(self, partitions: Iterable[int]) -> None:
        """Stop tracking topic partitions that were revoked, and revoke their pending deliveries."""
        for partition in partitions:
            state = self._partitions.pop(partition, _Partition())
            self._revoked[partition] = state.checkpoint()
            for delivery in state.pending.values():
                delivery.revoked = True
