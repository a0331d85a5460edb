"""A range of a topic as a source of batches: records that were read before, read again.

A replay is a topic of its own: its commits account for every record it read, like any other (`nothing-lost`), and the
checkpoints of the original topic do not move. Events that the lake has already are dropped as duplicates (`once`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa
from kafka.structs import TopicPartition

from pipelines.bus.clients import translate_errors
from pipelines.bus.topics import describe_topic
from pipelines.errors import UsageError
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.kafka import KafkaSource, decode_batch
from pipelines.ingest.record_batches import Polled

ReplayOffsets = dict[int, tuple[int, int]]
"""By topic partition: the offsets [start, end) to read again."""


@dataclass(slots=True)
class ReplaySource:
    """The records at `offsets`, read once under the topic id of the replay."""

    source: KafkaSource
    topic_id: str
    offsets: ReplayOffsets

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch of the range; None at its end. Raises what `KafkaSource.poll` raises."""
        starts = {n: checkpoint(self.topic_id, n) or start for n, (start, _) in self.offsets.items()}
        self.source.only = frozenset(n for n, (_, end) in self.offsets.items() if starts[n] < end)
        found = self.source.read(lambda _, partition: starts[partition]) if self.source.only else None
        if found is None:
            return None
        polled, ranges = self._cut_at_end(*found)
        return decode_batch(ranges[0].topic, polled, ranges, self.source.contract)

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoints after the last poll."""
        ends = {n: min(end, self.source.positions.get(n, end)) for n, (_, end) in self.offsets.items()}
        return lambda _, partition: ends.get(partition)

    def remaining_records(self) -> int:
        """Return the number of offsets of the range after the last poll."""
        positions = self.source.positions
        return sum(max(0, end - positions[n]) for n, (_, end) in self.offsets.items() if n in positions)

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Do nothing: the group's offsets belong to the original topic."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: the range was chosen within the log."""
        return ()

    def halt(self, halted: HaltedPartition) -> None:
        """Stop reading a topic partition."""
        self.source.halt(halted)

    def _cut_at_end(self, polled: Polled, ranges: tuple[OffsetRange, ...]) -> tuple[Polled, tuple[OffsetRange, ...]]:
        """Drop records after the range, and give the rest the topic and topic id of the replay."""
        topic = f"replay:{self.source.kafka.topic}"
        ends = {place.topic_partition: self.offsets[place.topic_partition][1] for place in ranges}
        cut = polled.before(ends)
        renamed = Polled(*(_with_topic(rows, self.topic_id, topic) for rows in (cut.records, cut.unreadable)))
        return renamed, tuple(
            replace(
                place.cut_at(ends[place.topic_partition], renamed.count(place.topic_partition)),
                topic_id=self.topic_id,
                topic=topic,
            )
            for place in ranges
        )


def _with_topic(rows: pa.Table, topic_id: str, topic: str) -> pa.Table:
    for name, value in (("topic_id", topic_id), ("topic", topic)):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.repeat(pa.scalar(value), len(rows)))
    return rows


def find_replay_offsets(
    source: KafkaSource, start: datetime | Mapping[int, int] | None, until: datetime | None
) -> ReplayOffsets:
    """Return the offsets between `start` and `until`, by topic partition.

    `start` is a time, or offsets by topic partition; None is the beginning of the log. Without `until`, the range ends
    at the current end of the log. A time selects the first record whose bus_time is not before it. Raises UsageError
    for an unknown topic partition, or an offset outside the log.
    """
    topic = describe_topic(source.kafka)
    if topic is None:
        raise UsageError(f"topic {source.kafka.topic} does not exist: there is nothing to replay")
    begins = {place.partition: place.begin_offset for place in topic.partitions}
    ends = {place.partition: place.end_offset for place in topic.partitions}
    starts = begins
    if isinstance(start, datetime):
        starts = _at_time(source, start, ends)
    elif start is not None:
        _check(start, begins, ends, topic.name)
        starts = dict(start)
    if until is not None:
        ends = _at_time(source, until, ends)
    return {n: (offset, ends[n]) for n, offset in starts.items() if offset < ends[n]}


def _at_time(source: KafkaSource, moment: datetime, ends: dict[int, int]) -> dict[int, int]:
    """Return the first offset not before a moment, by topic partition; the end of the log if there is none."""
    times = dict.fromkeys((TopicPartition(source.kafka.topic, n) for n in ends), int(moment.timestamp() * 1000))
    with translate_errors(source.kafka, f"looking for {moment.isoformat()} in {source.kafka.topic}"):
        found = source.consumer.offsets_for_times(times)
    return {tp.partition: first.offset if first else ends[tp.partition] for tp, first in found.items()}


def _check(start: Mapping[int, int], begins: dict[int, int], ends: dict[int, int], topic: str) -> None:
    for partition, offset in start.items():
        if partition not in begins:
            raise UsageError(f"{topic} has no topic partition {partition}: it has {', '.join(map(str, begins))}")
        if not begins[partition] <= offset <= ends[partition]:
            bounds = f"{begins[partition]} to {ends[partition]}"
            raise UsageError(f"{topic}-{partition} holds the offsets {bounds}, and {offset} is outside of them")
