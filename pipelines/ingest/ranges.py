"""What a batch is: records, what they were decoded to, and the ranges of offsets that they cover."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import Decoded

Checkpoint = Callable[[str, int], int | None]
"""The next offset of a topic partition (topic_id, number) by what the lake holds; None if it was never read."""


@dataclass(frozen=True, slots=True)
class LastRead:
    """The last record of a topic partition that was read before a checkpoint: what identifies the checkpoint."""

    offset: int
    digest: int
    """63 bits, of its time, key and value."""
    epoch: int
    """The leader epoch of its record batch; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets [start_offset, next_offset) of one topic partition, and the fate of every one of them.

    next_offset - start_offset = read + gaps + lost and read = accepted + duplicates + conflicts + dead_letters + erased
    (`nothing-lost`). `erased` records are of users who were erased. `gaps` hold no record for a reader: control
    records, aborted or compacted ones. `lost` were given up on the record; a range that steps back, to read a
    truncated log again, counts nothing.
    """

    topic_id: str
    topic: str
    topic_partition: int
    start_offset: int
    next_offset: int
    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    dead_letters: int = 0
    erased: int = 0
    gaps: int = 0
    lost: int = 0
    last: LastRead | None = field(default=None, compare=False)
    """The last record before next_offset; None if it is not known, or cannot be read again by itself."""

    def cut_at(self, end: int, read: int) -> "OffsetRange":
        """Return the range up to `end` at most, of which `read` records are left."""
        next_offset = min(self.next_offset, end)
        gaps = next_offset - self.start_offset - read
        return replace(self, next_offset=next_offset, read=read, gaps=gaps, last=None)

    def __str__(self) -> str:
        return f"{self.topic}-{self.topic_partition}@{self.start_offset}..{self.next_offset}"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it came from `source`: `records` (RECORD columns), what they are, and the offsets that it covers."""

    source: str
    records: pa.Table
    decoded: Decoded
    ranges: tuple[OffsetRange, ...]

    def begins_at(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts where the lake wants to read on, or has nothing yet."""
        return all(checkpoint(r.topic_id, r.topic_partition) in {r.start_offset, None} for r in self.ranges)

    def is_committed(self, checkpoint: Checkpoint) -> bool:
        """Return whether the lake wants to read on where every range ends."""
        return all(checkpoint(r.topic_id, r.topic_partition) == r.next_offset for r in self.ranges)

    def without(self, partitions: Collection[int]) -> "Batch | None":
        """Return the batch without some topic partitions, None if nothing is left of it."""
        ranges = tuple(r for r in self.ranges if r.topic_partition not in partitions)
        if not partitions or not ranges:
            return self if ranges else None
        kept = _others(self.decoded.events, partitions)
        decoded = replace(
            self.decoded,
            events=self.decoded.events.filter(kept),
            rejected=self.decoded.rejected.filter(_others(self.decoded.rejected, partitions)),
            mis_keyed=self.decoded.mis_keyed.filter(kept),
        )
        return replace(
            self, records=self.records.filter(_others(self.records, partitions)), decoded=decoded, ranges=ranges
        )


def _others(rows: pa.Table, partitions: Collection[int]) -> pa.BooleanArray:
    return pa.array(~np.isin(rows["topic_partition"].to_numpy(), list(partitions)))
