"""What the sources share whose records are at hand: an event, a file, dead letters, a sample."""

from pipelines.ingest.batch import Checkpoint, OffsetRange
from pipelines.ingest.guard import HaltedPartition


class RecordsAtHand:
    """The part of `read_ahead.Source` for records of one topic partition that no broker holds."""

    __slots__ = ()

    def remaining_records(self) -> int:
        """Return 0: a poll that returns nothing is the end."""
        return 0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Do nothing: there is no consumer group."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: records at hand are not lost."""
        return ()

    def halt(self, halted: HaltedPartition) -> None:
        """Raise RejectedError: there is no other topic partition."""
        raise halted.error()
