"""How far a destination has come in each topic partition: the offsets below which everything is settled. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.notify.lanes import Delivery


@dataclass(slots=True)
class _Partition:
    next_offset: int | None = None
    """None until something was read since it was assigned."""
    begun: bool = False
    """False until the reader was told where to begin."""
    committed: int | None = None
    unsettled: dict[int, Delivery] = field(default_factory=dict)

    def checkpoint(self) -> int | None:
        """Return the lower of both: after a move the reader may begin again below what was handed over last."""
        return None if self.next_offset is None else min([self.next_offset, *self.unsettled])


class Progress:
    """Of the topic partitions that are assigned to this notifier."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._left: dict[int, int | None] = {}
        """Topic partitions that nobody was given since we left them, each with the checkpoint of then."""

    def take(self, partitions: Iterable[int]) -> None:
        """Begin anew with topic partitions that are ours now, or ours again."""
        self._partitions |= {partition: _Partition(self._left.get(partition)) for partition in partitions}
        self._left = {}

    def is_read(self, partition: int) -> bool:
        """Tell whether what is polled of a topic partition goes on from what was read of it before."""
        return partition in self._partitions and self._partitions[partition].begun

    def begin(self, partition: int, polled_from: int | None) -> int | None:
        """Return where to read a topic partition again of which something was polled too early; None changes nothing.

        The reader goes on behind what it polled, whose it was or not, and with a topic partition that is ours again
        behind what was withdrawn when it was left.
        """
        state = self._partitions.get(partition, _Partition())
        state.begun = True
        return min((at for at in (polled_from, state.next_offset) if at is not None), default=None)

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
            state = self._partitions.pop(partition, _Partition())
            self._left[partition] = state.checkpoint()
            for delivery in state.unsettled.values():
                delivery.withdrawn = True
