"""A batch: records, their decoded events and rejections, and the offset ranges that they cover."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import Decoded

Checkpoint = Callable[[str, int], int | None]
"""Returns the next offset of a topic partition (topic_id, partition number) in the lake; None if it was never read."""


@dataclass(frozen=True, slots=True)
class LastRead:
    """The last record read before a checkpoint of a topic partition: it identifies the checkpoint."""

    offset: int
    digest: int
    """63 bits, over its time, key and value."""
    epoch: int
    """The leader epoch of its record batch; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets [start_offset, next_offset) of one topic partition, and the fate of each.

    next_offset - start_offset = read + gaps + lost and read = accepted + duplicates + conflicts + dead_letters + erased
    (`nothing-lost`). `erased` records belong to erased users. `gaps` are offsets without a record for a reader: control
    records, aborted or compacted ones. `lost` records were accepted as lost. A range that steps back, to read a
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
    """The last record before next_offset; None if it is unknown, or cannot be read again on its own."""

    def cut_at(self, end: int, read: int) -> "OffsetRange":
        """Return the range up to `end` at most, with `read` records in it."""
        next_offset = min(self.next_offset, end)
        gaps = next_offset - self.start_offset - read
        return replace(self, next_offset=next_offset, read=read, gaps=gaps, last=None)

    def with_records(self, read: int) -> "OffsetRange":
        """Return the range with `read` records in it; the other offsets are gaps."""
        return replace(self, read=read, gaps=self.next_offset - self.start_offset - read)

    def __str__(self) -> str:
        return f"{self.topic}-{self.topic_partition}@{self.start_offset}..{self.next_offset}"


@dataclass(frozen=True, slots=True)
class Batch:
    """Records from one `source` (RECORD columns), decoded, and the offset ranges that they cover."""

    source: str
    records: pa.Table
    decoded: Decoded
    ranges: tuple[OffsetRange, ...]
    divisible: bool = True
    """Whether a part of it may be committed without the rest."""

    def begins_at(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts at its checkpoint, or has no checkpoint yet."""
        return all(checkpoint(r.topic_id, r.topic_partition) in {r.start_offset, None} for r in self.ranges)

    def follows(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts at its checkpoint."""
        return all(checkpoint(r.topic_id, r.topic_partition) == r.start_offset for r in self.ranges)

    def is_committed(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range ends at its checkpoint."""
        return all(checkpoint(r.topic_id, r.topic_partition) == r.next_offset for r in self.ranges)

    def halves(self) -> "tuple[Batch, Batch] | None":
        """Return the earlier and the later half of the records of each range; None if the batch cannot be split."""
        middles = {r.topic_partition: self._middle(r.topic_partition) for r in self.ranges}
        cuts = {partition: middle for partition, middle in middles.items() if middle is not None}
        if not cuts or not self.divisible:
            return None
        earlier = [r.cut_at(cuts[r.topic_partition], 0) if r.topic_partition in cuts else r for r in self.ranges]
        later = [replace(r, start_offset=cuts[r.topic_partition]) for r in self.ranges if r.topic_partition in cuts]
        return self._part(earlier), self._part(later)

    def _middle(self, partition: int) -> int | None:
        """Return the offset of the middle record of a topic partition, where the later half starts."""
        offsets = np.sort(self.records["offset"].to_numpy()[self.records["topic_partition"].to_numpy() == partition])
        return int(offsets[len(offsets) // 2]) if len(offsets) > 1 else None

    def _part(self, ranges: list[OffsetRange]) -> "Batch":
        """Return the part of the batch within `ranges`, with the number of records in each."""
        bounds = {r.topic_partition: (r.start_offset, r.next_offset) for r in ranges}
        records, events, rejected = (
            _inside(rows, bounds) for rows in (self.records, self.decoded.events, self.decoded.rejected)
        )
        decoded = Decoded(
            self.decoded.events.filter(events),
            self.decoded.rejected.filter(rejected),
            self.decoded.mis_keyed.filter(events),
        )
        counted = tuple(r.with_records(_count(self.records.filter(records), r.topic_partition)) for r in ranges)
        return replace(self, records=self.records.filter(records), decoded=decoded, ranges=counted)

    def without(self, partitions: Collection[int]) -> "Batch | None":
        """Return the batch without some topic partitions; None if nothing is left."""
        ranges = tuple(r for r in self.ranges if r.topic_partition not in partitions)
        if not partitions or not ranges:
            return self if ranges else None
        remaining = _not_in(self.decoded.events, partitions)
        decoded = replace(
            self.decoded,
            events=self.decoded.events.filter(remaining),
            rejected=self.decoded.rejected.filter(_not_in(self.decoded.rejected, partitions)),
            mis_keyed=self.decoded.mis_keyed.filter(remaining),
        )
        return replace(
            self, records=self.records.filter(_not_in(self.records, partitions)), decoded=decoded, ranges=ranges
        )


def _not_in(rows: pa.Table, partitions: Collection[int]) -> pa.BooleanArray:
    return pa.array(~np.isin(rows["topic_partition"].to_numpy(), list(partitions)))


def _inside(rows: pa.Table, ranges: Mapping[int, tuple[int, int]]) -> pa.BooleanArray:
    inside = np.zeros(len(rows), bool)
    partitions, offsets = rows["topic_partition"].to_numpy(), rows["offset"].to_numpy()
    for partition, (start, end) in ranges.items():
        inside |= (partitions == partition) & (start <= offsets) & (offsets < end)
    return pa.array(inside)


def _count(rows: pa.Table, partition: int) -> int:
    return int(np.count_nonzero(rows["topic_partition"].to_numpy() == partition))
