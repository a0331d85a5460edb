"""A stretch of a topic as a source of batches: records that were read before, read again.

A replay is a topic of its own, so that its commits account for what it read like any other (`nothing-lost`), and the
checkpoints of the topic itself stay where they are. What the lake holds already is dropped as a duplicate (`once`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa
from kafka.structs import TopicPartition

from pipelines.bus.clients import translated
from pipelines.bus.topics import describe_topic
from pipelines.errors import UsageError
from pipelines.ingest.batches import Polled
from pipelines.ingest.guard import Halted
from pipelines.ingest.ranges import Batch, Checkpoint, OffsetRange
from pipelines.ingest.source import KafkaSource, as_batch

Stretch = dict[int, tuple[int, int]]
"""By topic partition: the offsets [start, end) that are read again."""


@dataclass(slots=True)
class Replay:
    """The records of `stretch`, once, under the topic id of the replay."""

    source: KafkaSource
    topic_id: str
    stretch: Stretch

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch of the stretch; None at its end. Errors as the topic has them."""
        starts = {n: checkpoint(self.topic_id, n) or start for n, (start, _) in self.stretch.items()}
        self.source.only = frozenset(n for n, (_, end) in self.stretch.items() if starts[n] < end)
        found = self.source.read(lambda _, partition: starts[partition]) if self.source.only else None
        if found is None:
            return None
        polled, ranges = self._up_to_the_end(*found)
        return as_batch(ranges[0].topic, polled, ranges, self.source.contract)

    def following(self) -> Checkpoint:
        """Return the checkpoints behind what was polled last."""
        ends = {n: min(end, self.source.positions.get(n, end)) for n, (_, end) in self.stretch.items()}
        return lambda _, partition: ends.get(partition)

    def behind(self) -> int:
        """Return how many offsets of the stretch lie behind what was polled last."""
        at = self.source.positions
        return sum(max(0, end - at[n]) for n, (_, end) in self.stretch.items() if n in at)

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Tell nobody: the group's offsets are those of the topic itself."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: a stretch is chosen among what the log holds."""
        return ()

    def halt(self, halted: Halted) -> None:
        """Read a topic partition no further."""
        self.source.halt(halted)

    def _up_to_the_end(self, polled: Polled, ranges: tuple[OffsetRange, ...]) -> tuple[Polled, tuple[OffsetRange, ...]]:
        """Leave out what lies behind the stretch, and give everything the replay's name."""
        topic = f"replay:{self.source.kafka.topic}"
        ends = {place.topic_partition: self.stretch[place.topic_partition][1] for place in ranges}
        cut = polled.before(ends)
        kept = Polled(*(_renamed(rows, self.topic_id, topic) for rows in (cut.records, cut.unread)))
        return kept, tuple(
            replace(
                place.cut_at(ends[place.topic_partition], kept.count(place.topic_partition)),
                topic_id=self.topic_id,
                topic=topic,
            )
            for place in ranges
        )


def _renamed(rows: pa.Table, topic_id: str, topic: str) -> pa.Table:
    for name, value in (("topic_id", topic_id), ("topic", topic)):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.repeat(pa.scalar(value), len(rows)))
    return rows


def find_stretch(source: KafkaSource, start: datetime | Mapping[int, int] | None, until: datetime | None) -> Stretch:
    """Return what lies between `start`, a time or offsets by topic partition (None is the beginning), and `until`.

    Without `until` that is everything up to the end of now. A time means the first record whose bus_time is not before
    it. Raises UsageError for a topic partition that is not there, or offsets that the log does not hold.
    """
    topic = describe_topic(source.kafka)
    if topic is None:
        raise UsageError(f"topic {source.kafka.topic} does not exist: there is nothing to read again")
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
    return {partition: (at, ends[partition]) for partition, at in starts.items() if at < ends[partition]}


def _at_time(source: KafkaSource, moment: datetime, ends: dict[int, int]) -> dict[int, int]:
    """Return the first offset not before a moment, by topic partition; its end if there is none."""
    asked = dict.fromkeys((TopicPartition(source.kafka.topic, n) for n in ends), int(moment.timestamp() * 1000))
    with translated(source.kafka, f"looking for {moment.isoformat()} in {source.kafka.topic}"):
        found = source.consumer.offsets_for_times(asked)
    return {place.partition: at.offset if at else ends[place.partition] for place, at in found.items()}


def _check(start: Mapping[int, int], begins: dict[int, int], ends: dict[int, int], topic: str) -> None:
    for partition, offset in start.items():
        if partition not in begins:
            raise UsageError(f"{topic} has no topic partition {partition}: it has {', '.join(map(str, begins))}")
        if not begins[partition] <= offset <= ends[partition]:
            held = f"{begins[partition]} to {ends[partition]}"
            raise UsageError(f"{topic}-{partition} holds the offsets {held}, and {offset} is outside of them")
