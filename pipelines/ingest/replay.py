"""A range of topics as a source of batches: records that were read before, read again.

The replay of a topic is a topic of its own: its commits account for every record it read, like any other
(`nothing-lost`), and the checkpoints of the original topic do not move. Events that the lake has already are dropped as
duplicates (`once`).
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from kafka.structs import TopicPartition

from pipelines.bus.clients import translate_errors
from pipelines.bus.topics import describe_topic
from pipelines.contract.time_like import require_order
from pipelines.errors import UsageError
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.decoding import decode_batch
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.kafka import KafkaSource, Read
from pipelines.ingest.record_batches import Polled

ReplayOffsets = dict[TopicPartition, tuple[int, int]]
"""By topic partition: the offsets [start, end) to read again."""
Range = tuple[str, int, int, int]
"""topic_id, topic partition, and the offsets [start, end)."""
PREFIX = "replay:"
"""Before the topic of replayed records in the lake."""


@dataclass(slots=True)
class ReplaySource:
    """The records at `offsets`, read once; each topic under a topic id of the replay. `replay_source` makes it."""

    source: KafkaSource
    offsets: ReplayOffsets
    replayed_ids: Mapping[str, str]
    """The id of each topic, by its name."""
    topic_ids: Mapping[str, str]
    """The topic id that the replay of each topic has, by the topic's name."""

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch of the range; None at its end.

        Raises what `KafkaSource.poll` raises, and UsageError if a topic was recreated meanwhile.
        """
        starts = {
            tp: checkpoint(self.topic_ids[tp.topic], tp.partition) or start for tp, (start, _) in self.offsets.items()
        }
        self.source.only = frozenset(tp for tp, (_, end) in self.offsets.items() if starts[tp] < end)
        at = {(self.replayed_ids[tp.topic], tp.partition): start for tp, start in starts.items()}
        found = (
            self.source.read(lambda topic_id, partition: at.get((topic_id, partition))) if self.source.only else None
        )
        return found and self._renamed(decode_batch(*self._cut_at_end(*found), self.source.topics))

    def places(self) -> list[Range]:
        """Return the range of each topic partition, by the ids of the original topics."""
        return [(self.replayed_ids[tp.topic], tp.partition, *bounds) for tp, bounds in self.offsets.items()]

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoints after the last poll."""
        ends = {
            (self.topic_ids[tp.topic], tp.partition): min(end, self.source.positions.get(tp, end))
            for tp, (_, end) in self.offsets.items()
        }
        return lambda topic_id, partition: ends.get((topic_id, partition))

    def remaining_records(self) -> int:
        """Return the number of offsets of the range after the last poll."""
        positions = self.source.positions
        return sum(max(0, end - positions[tp]) for tp, (_, end) in self.offsets.items() if tp in positions)

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Do nothing: the group's offsets belong to the original topics."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: the range was chosen within the log."""
        return ()

    def halt(self, halted: HaltedPartition) -> None:
        """Stop reading a topic partition."""
        self.source.halt(replace(halted, topic=halted.topic.removeprefix(PREFIX)))

    def _cut_at_end(self, polled: Mapping[str, Polled], ranges: tuple[OffsetRange, ...]) -> Read:
        """Drop records after the range."""
        for place in ranges:
            if place.topic_id != self.replayed_ids[place.topic]:
                raise UsageError(f"topic {place.topic} was deleted and created again: start the replay again")
        cut = {name: found.before(self._ends(name)) for name, found in polled.items()}
        return cut, tuple(self._cut_range(place, cut.get(place.topic)) for place in ranges)

    def _ends(self, name: str) -> dict[int, int]:
        return {tp.partition: end for tp, (_, end) in self.offsets.items() if tp.topic == name}

    def _cut_range(self, place: OffsetRange, polled: Polled | None) -> OffsetRange:
        read = polled.count(place.topic_partition) if polled else 0
        return place.cut_at(self._ends(place.topic)[place.topic_partition], read)

    def _renamed(self, batch: Batch) -> Batch:
        """Give a batch the topics and topic ids of the replay, once it is decoded: ids may depend on the place."""
        decoded = replace(
            batch.decoded,
            events=self._with_topics(batch.decoded.events),
            rejected=self._with_topics(batch.decoded.rejected),
            filtered=self._with_topics(batch.decoded.filtered),
        )
        ranges = tuple(
            replace(place, topic_id=self.topic_ids[place.topic], topic=f"{PREFIX}{place.topic}")
            for place in batch.ranges
        )
        source = ", ".join(dict.fromkeys(place.topic for place in ranges))
        return replace(batch, source=source, records=self._with_topics(batch.records), decoded=decoded, ranges=ranges)

    def _with_topics(self, rows: pa.Table) -> pa.Table:
        names = list(self.topic_ids)
        numbers = pc.index_in(rows["topic"], value_set=pa.array(names, pa.string()))
        topics = {"topic_id": list(self.topic_ids.values()), "topic": [f"{PREFIX}{name}" for name in names]}
        for column, values in topics.items():
            at = rows.schema.get_field_index(column)
            rows = rows.set_column(at, rows.schema.field(at), pa.array(values, pa.string()).take(numbers))
        return rows


def replay_source(
    source: KafkaSource, start: datetime | Mapping[int, int] | None, until: datetime | None
) -> ReplaySource | None:
    """Return the replay of the offsets that `find_replay_offsets` returns; None if there are none."""
    offsets = find_replay_offsets(source, start, until)
    ids = source.describe_ids()
    return ReplaySource(source, offsets, ids, {name: f"replay-{uuid4().hex}" for name in ids}) if offsets else None


def find_replay_offsets(
    source: KafkaSource, start: datetime | Mapping[int, int] | None, until: datetime | None
) -> ReplayOffsets:
    """Return the offsets between `start` and `until` of the topics of `source`, by topic partition.

    `start` is a time, or offsets by partition number of the only topic; None is the beginning of the log. Without
    `until`, the range ends at the current end of the log. A time selects the first record whose bus_time is not before
    it. Raises UsageError for an unknown topic partition, an offset outside the log, offsets without the one topic that
    they are of, or a start that is not before `until`.
    """
    if isinstance(start, datetime):
        require_order(start, until)
    if isinstance(start, Mapping) and len(source.topics) > 1:
        raise UsageError(f"several topics are ingested ({', '.join(source.topics)}): name the one of the offsets")
    offsets = [_find_offsets(source, name, start, until) for name in source.topics]
    return {tp: bounds for found in offsets for tp, bounds in found.items()}


def _find_offsets(
    source: KafkaSource, name: str, start: datetime | Mapping[int, int] | None, until: datetime | None
) -> ReplayOffsets:
    topic = describe_topic(source.settings.kafka.model_copy(update={"topic": name}))
    if topic is None:
        raise UsageError(f"topic {name} does not exist: there is nothing to replay")
    begins = {place.partition: place.begin_offset for place in topic.partitions}
    ends = {place.partition: place.end_offset for place in topic.partitions}
    starts = begins
    if isinstance(start, datetime):
        starts = _at_time(source, name, start, ends)
    elif start is not None:
        _check(start, begins, ends, topic.name)
        starts = dict(start)
    if until is not None:
        ends = _at_time(source, name, until, ends)
    return {TopicPartition(name, n): (offset, ends[n]) for n, offset in starts.items() if offset < ends[n]}


def _at_time(source: KafkaSource, name: str, moment: datetime, ends: dict[int, int]) -> dict[int, int]:
    """Return the first offset not before a moment, by topic partition; the end of the log if there is none."""
    times = dict.fromkeys((TopicPartition(name, n) for n in ends), int(moment.timestamp() * 1000))
    with translate_errors(source.settings.kafka, f"looking for {moment.isoformat()} in {name}"):
        found = source.consumer.offsets_for_times(times)
    return {tp.partition: first.offset if first else ends[tp.partition] for tp, first in found.items()}


def _check(start: Mapping[int, int], begins: dict[int, int], ends: dict[int, int], topic: str) -> None:
    for partition, offset in start.items():
        if partition not in begins:
            raise UsageError(f"{topic} has no topic partition {partition}: it has {', '.join(map(str, begins))}")
        if not begins[partition] <= offset <= ends[partition]:
            bounds = f"{begins[partition]} to {ends[partition]}"
            raise UsageError(f"{topic}-{partition} holds the offsets {bounds}, and {offset} is outside of them")
