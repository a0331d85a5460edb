"""A batch: records, their decoded events and rejections, and the offset ranges that they cover."""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.decode import Decoded

Place = tuple[str, int]
"""(topic_id, topic_partition): two topics have topic partitions of the same numbers."""
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
    """Offsets [start_offset, next_offset) of one topic partition, and the fate of each record and event.

    Offsets: next_offset - start_offset = read + gaps + lost. Records: read = converted + filtered + dead_letters.
    Events: made = accepted + duplicates + conflicts + erased (`nothing-lost`). A record is converted if it became one
    event or several, and filtered if its source leaves it out. `erased` events belong to erased users; a rejected
    record of such a user counts as one event. `gaps` are offsets without a record for a reader: control records,
    aborted or compacted ones. `lost` records were accepted as lost. A range that steps back, to read a truncated log
    again, counts nothing.
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
    converted: int = 0
    filtered: int = 0
    made: int = 0
    source: str | None = None
    """The source that made the events: `contract`, or the name of a source file; None for rows of a file."""
    source_digest: str | None = None
    """The digest of the source file's text and schemas; None for our own contract."""
    last: LastRead | None = field(default=None, compare=False)
    """The last record before next_offset; None if it is unknown, or cannot be read again on its own."""

    @property
    def place(self) -> Place:
        """The topic partition, by the topic's id."""
        return self.topic_id, self.topic_partition

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
    """Records from one `source` (RECORD columns), decoded, and the offset ranges that they cover.

    The ranges may be of several topics; every row is within one of them.
    """

    source: str
    records: pa.Table
    decoded: Decoded
    ranges: tuple[OffsetRange, ...]
    divisible: bool = True
    """Whether a part of it may be committed without the rest."""

    def begins_at(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts at its checkpoint, or has no checkpoint yet."""
        return all(checkpoint(*r.place) in {r.start_offset, None} for r in self.ranges)

    def follows(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts at its checkpoint."""
        return all(checkpoint(*r.place) == r.start_offset for r in self.ranges)

    def is_committed(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range ends at its checkpoint."""
        return all(checkpoint(*r.place) == r.next_offset for r in self.ranges)

    def halves(self) -> "tuple[Batch, Batch] | None":
        """Return the earlier and the later half of the records of each range; None if the batch cannot be split."""
        numbers, offsets = range_numbers(self.records, self.ranges), self.records["offset"].to_numpy()
        middles = [_middle(offsets[numbers == number]) for number in range(len(self.ranges))]
        if not self.divisible or all(middle is None for middle in middles):
            return None
        cuts = list(zip(self.ranges, middles, strict=True))
        earlier = [r if middle is None else r.cut_at(middle, 0) for r, middle in cuts]
        later = [None if middle is None else replace(r, start_offset=middle) for r, middle in cuts]
        return _counted(self._part(earlier)), _counted(self._part(later))

    def without(self, places: Collection[Place]) -> "Batch | None":
        """Return the batch without some topic partitions; None if nothing is left."""
        parts = [None if r.place in places else r for r in self.ranges]
        if not any(parts):
            return None
        return self._part(parts) if places else self

    def _part(self, parts: "Sequence[OffsetRange | None]") -> "Batch":
        """Return the rows within `parts`: of each range a part, or None."""
        starts = np.array([part.start_offset if part else 0 for part in parts])
        ends = np.array([part.next_offset if part else 0 for part in parts])

        def inside(rows: pa.Table) -> pa.BooleanArray:
            numbers, offsets = range_numbers(rows, self.ranges), rows["offset"].to_numpy()
            return pa.array((starts[numbers] <= offsets) & (offsets < ends[numbers]))

        decoded, events = self.decoded, inside(self.decoded.events)
        remaining = Decoded(
            events=decoded.events.filter(events),
            rejected=decoded.rejected.filter(inside(decoded.rejected)),
            mis_keyed=decoded.mis_keyed.filter(events),
            filtered=decoded.filtered.filter(inside(decoded.filtered)),
        )
        records = self.records.filter(inside(self.records))
        return replace(self, records=records, decoded=remaining, ranges=tuple(filter(None, parts)))


def range_numbers(rows: pa.Table, ranges: Sequence[OffsetRange]) -> np.ndarray:
    """Return the number of the range that each row is in; integers of shape (rows,).

    `rows` has POSITION columns, all within the ranges. If these are of one topic, topic_ids are not compared.
    """
    partitions = rows["topic_partition"].to_numpy()
    first, *others = dict.fromkeys(r.topic_id for r in ranges) or [""]
    numbers = _numbers(first, partitions, ranges)
    for topic_id in others:
        of_topic = pc.equal(rows["topic_id"], topic_id).to_numpy(zero_copy_only=False)
        numbers = np.where(of_topic, _numbers(topic_id, partitions, ranges), numbers)
    return numbers


def _numbers(topic_id: str, partitions: np.ndarray, ranges: Sequence[OffsetRange]) -> np.ndarray:
    """Return the numbers of the ranges of one topic by topic partition; anything for the rows of other topics."""
    known = {r.topic_partition: number for number, r in enumerate(ranges) if r.topic_id == topic_id}
    table = np.zeros(max([partitions.max(initial=0), *known]) + 1, np.intp)
    table[list(known)] = list(known.values())
    return table[partitions]


def count_rows(rows: pa.Table, ranges: Sequence[OffsetRange]) -> np.ndarray:
    """Return the number of rows in each range; integers of shape (ranges,)."""
    return np.bincount(range_numbers(rows, ranges), minlength=len(ranges))


def _counted(batch: Batch) -> Batch:
    """Return a batch with the number of records in each of its ranges."""
    counts = count_rows(batch.records, batch.ranges)
    ranges = (r.with_records(int(count)) for r, count in zip(batch.ranges, counts, strict=True))
    return replace(batch, ranges=tuple(ranges))


def _middle(offsets: np.ndarray) -> int | None:
    """Return the offset of the middle record, where the later half starts; None if there is none."""
    return int(np.sort(offsets)[len(offsets) // 2]) if len(offsets) > 1 else None
