"""How far a destination has come in each topic partition: the offsets below which everything is settled. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.notify.lanes import Delivery


@dataclass(slots=True)
class _Partition:
    next_offset: int | None = None
    """None until something was read since it was assigned."""
    committed: int | None = None
    unsettled: dict[int, Delivery] = field(default_factory=dict)

    def checkpoint(self) -> int | None:
        """Return the lower of both: after a move the reader may begin again below what was handed over last."""
        return None if self.next_offset is None else min([self.next_offset, *self.unsettled])


class Progress:
    """Of the topic partitions that are assigned to this notifier."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}

    def take(self, partitions: Iterable[int]) -> None:
        """Begin anew with topic partitions that are ours now."""
        self._partitions |= {partition: _Partition() for partition in partitions}

    def holds(self, partition: int) -> bool:
        """Tell whether a topic partition was taken and not left since."""
        return partition in self._partitions

    def read(self, partition: int, next_offset: int, deliveries: Iterable[Delivery]) -> None:
        """Note that the records below next_offset were read, and what is to be delivered of those read now."""
        known = self._partitions[partition]
        known.next_offset = next_offset
        known.unsettled |= {delivery.record.offset: delivery for delivery in deliveries}

    def settle(self, delivery: Delivery) -> None:
        """Note that a delivery needs no more: it was taken, or is a dead letter."""
        if not delivery.withdrawn:
            del self._partitions[delivery.record.partition].unsettled[delivery.record.offset]

    def checkpoints(self) -> dict[int, int]:
        """Return the next offset of each topic partition that has come further than was committed."""
        states = ((number, state.checkpoint(), state.committed) for number, state in self._partitions.items())
        return {number: at for number, at, committed in states if at is not None and at != committed}

    def committed(self, checkpoints: dict[int, int]) -> None:
        """Note what is now committed."""
        for partition, next_offset in checkpoints.items():
            self._partitions[partition].committed = next_offset

    def leave(self, partitions: Iterable[int]) -> None:
        """Forget topic partitions that are somebody else's now, and withdraw what is unsettled of them."""
        for partition in partitions:
            state = self._partitions.pop(partition, None)
            for delivery in state.unsettled.values() if state else ():
                delivery.withdrawn = True
