"""What a batch is: records, what they were decoded to, and the ranges of offsets that they cover."""

from collections.abc import Callable, Collection, Mapping
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

    def with_records(self, read: int) -> "OffsetRange":
        """Return the range with the number of records in it; the other offsets are gaps."""
        return replace(self, read=read, gaps=self.next_offset - self.start_offset - read)

    def __str__(self) -> str:
        return f"{self.topic}-{self.topic_partition}@{self.start_offset}..{self.next_offset}"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it came from `source`: `records` (RECORD columns), what they are, and the offsets that it covers."""

    source: str
    records: pa.Table
    decoded: Decoded
    ranges: tuple[OffsetRange, ...]
    divisible: bool = True
    """Whether a part of it may be committed without the rest."""

    def begins_at(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts where the lake wants to read on, or has nothing yet."""
        return all(checkpoint(r.topic_id, r.topic_partition) in {r.start_offset, None} for r in self.ranges)

    def follows(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts where the lake wants to read on."""
        return all(checkpoint(r.topic_id, r.topic_partition) == r.start_offset for r in self.ranges)

    def is_committed(self, checkpoint: Checkpoint) -> bool:
        """Return whether the lake wants to read on where every range ends."""
        return all(checkpoint(r.topic_id, r.topic_partition) == r.next_offset for r in self.ranges)

    def halves(self) -> "tuple[Batch, Batch] | None":
        """Return the earlier and the later half of the records of each range; None if it cannot be divided."""
        middles = {r.topic_partition: self._middle(r.topic_partition) for r in self.ranges}
        cuts = {partition: middle for partition, middle in middles.items() if middle is not None}
        if not cuts or not self.divisible:
            return None
        earlier = [r.cut_at(cuts[r.topic_partition], 0) if r.topic_partition in cuts else r for r in self.ranges]
        later = [replace(r, start_offset=cuts[r.topic_partition]) for r in self.ranges if r.topic_partition in cuts]
        return self._part(earlier), self._part(later)

    def _middle(self, partition: int) -> int | None:
        """Return the offset of the record in the middle of a topic partition, which the later half starts with."""
        offsets = np.sort(self.records["offset"].to_numpy()[self.records["topic_partition"].to_numpy() == partition])
        return int(offsets[len(offsets) // 2]) if len(offsets) > 1 else None

    def _part(self, ranges: list[OffsetRange]) -> "Batch":
        """Return the records within some ranges, which are told how many that are."""
        inside = {r.topic_partition: (r.start_offset, r.next_offset) for r in ranges}
        records, events, rejected = (
            _inside(rows, inside) for rows in (self.records, self.decoded.events, self.decoded.rejected)
        )
        decoded = Decoded(
            self.decoded.events.filter(events),
            self.decoded.rejected.filter(rejected),
            self.decoded.mis_keyed.filter(events),
        )
        counted = tuple(r.with_records(_count(self.records.filter(records), r.topic_partition)) for r in ranges)
        return replace(self, records=self.records.filter(records), decoded=decoded, ranges=counted)

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


def _inside(rows: pa.Table, ranges: Mapping[int, tuple[int, int]]) -> pa.BooleanArray:
    inside = np.zeros(len(rows), bool)
    partitions, offsets = rows["topic_partition"].to_numpy(), rows["offset"].to_numpy()
    for partition, (start, end) in ranges.items():
        inside |= (partitions == partition) & (start <= offsets) & (offsets < end)
    return pa.array(inside)


def _count(rows: pa.Table, partition: int) -> int:
    return int(np.count_nonzero(rows["topic_partition"].to_numpy() == partition))
