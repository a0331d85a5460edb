"""Skip one record: commit it as a dead letter without decoding it, so that ingest gets past it.

It is a batch like any other: the records before it are drained, the record is read but not decoded, and the commit
accounts for it (`nothing-lost`). A later requeue decodes it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import pyarrow as pa
from kafka.structs import TopicPartition

from pipelines.boundary.toml import abbreviate
from pipelines.bus.topics import TopicPartitionState, describe_topic
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import RECORD, REJECTED
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import RejectedError, UsageError
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.decoding import NOTHING, decode_batch
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.kafka import KafkaSource, open_source, open_unchecked_source
from pipelines.ingest.record_batches import NO_RECORDS, Polled
from pipelines.ingest.sources import IngestedTopic, topic_sources
from pipelines.lake.checkpoints import checkpoint
from pipelines.lake.commit import CommitRecord
from pipelines.lake.run_lake import RunLake
from pipelines.lake.tables import is_lake, open_lake
from pipelines.settings import Settings

_PARTITION = re.compile(r"(?P<topic>.+)-(?P<partition>[0-9]{1,9})")
_PLACE = re.compile(_PARTITION.pattern + r"@(?P<offset>[0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Skipped:
    """The outcome of a skip: records drained before it, and the offsets that the dead letter covers."""

    drained: int
    skipped: OffsetRange


def parse_partition(settings: Settings, text: str) -> TopicPartition:
    """Return the topic partition in TOPIC-PARTITION. Raises UsageError if the topic is not ingested."""
    return _topic_partition(_parse(settings, _PARTITION, text, "TOPIC-PARTITION"))


def skip(settings: Settings, place: str, why: str) -> Skipped:
    """Commit the record at a place (TOPIC-PARTITION@OFFSET) as a dead letter, `skipped`, without decoding it.

    Drains the records before it in its topic partition first. An unreadable record batch becomes one dead letter.
    A kill at any moment is harmless: run it again. Raises UsageError if there is no such record, or ingest has passed
    it.
    """
    named = _parse(settings, _PLACE, place, "TOPIC-PARTITION@OFFSET")
    if not why.strip():
        raise UsageError("give the reason (--why) for skipping the record; it is recorded with the dead letter")
    tp, offset = _topic_partition(named), int(named["offset"])
    topic_id, log = _readable_log(settings, tp, offset, place)
    lake = RunLake(settings.lake_root)
    drained_commits: list[CommitRecord] = []
    skipped_commits: list[CommitRecord] = []
    with open_source(settings, {tp}) as source:
        preceding = _BoundedSource(source, topic_id, log, offset, _batch_before(offset))
        with open_ingest_from(preceding, settings, opening=lake.open) as ingest:
            source.committed = ingest.last_read
            drain(ingest, drained_commits.append)
    with open_unchecked_source(settings, tp) as source:
        skipped = _BoundedSource(source, topic_id, log, offset + 1, _dead_letter_batch(log, offset, why))
        with open_ingest_from(skipped, settings, opening=lake.open) as ingest:
            drain(ingest, skipped_commits.append)
    if not skipped_commits:
        raise UsageError(f"there is no record at {place}: that offset is a control record, or was compacted away")
    return Skipped(sum(record.total("read") for record in drained_commits), skipped_commits[0].ranges[0])


def _readable_log(settings: Settings, tp: TopicPartition, offset: int, place: str) -> tuple[str, TopicPartitionState]:
    """Return the topic's id and the topic partition. Raises UsageError unless the offset is in the log and unread."""
    topic = describe_topic(settings.kafka.model_copy(update={"topic": tp.topic}))
    found = [log for log in topic.partitions if log.partition == tp.partition] if topic else []
    if topic is None or not found:
        raise UsageError(f"{tp.topic} has no topic partition {tp.partition}")
    log = found[0]
    at = None
    if is_lake(settings.lake_root):
        events = open_lake(settings.lake_root).table("events")
        at = checkpoint(events, topic.topic_id, tp.partition)
    if at is not None and offset < at:
        raise UsageError(
            f"ingest has passed {place}: the checkpoint is {at}, so that record already is an event, a duplicate, "
            "a conflict or a dead letter; there is nothing to skip"
        )
    if not log.begin_offset <= offset < log.end_offset:
        raise UsageError(f"there is no record at {place}: the log holds [{log.begin_offset}, {log.end_offset})")
    return topic.topic_id, log


def _parse(settings: Settings, pattern: re.Pattern[str], text: str, form: str) -> re.Match[str]:
    named, given = pattern.fullmatch(text), abbreviate(text)
    if named is None:
        raise UsageError(
            f"{given!r} is not of the form {form}, which `karmalake dead-letters list` and error messages use"
        )
    topics = topic_sources(settings)
    if named["topic"] not in topics:
        ingested = f"kafka.topic is {settings.kafka.topic}" if len(topics) == 1 else f"ingested are {', '.join(topics)}"
        raise UsageError(f"{given} is in the topic {abbreviate(named['topic'])}, but {ingested}: correct one of them")
    return named


def _topic_partition(named: re.Match[str]) -> TopicPartition:
    return TopicPartition(named["topic"], int(named["partition"]))


_BuildBatch = Callable[[Polled, OffsetRange, IngestedTopic], Batch | None]
"""Builds a batch from the polled records of a topic and their range; None if they do not make one."""


def _batch_before(offset: int) -> _BuildBatch:
    """Return a builder of batches of the records before an offset."""

    def build(polled: Polled, place: OffsetRange, topic: IngestedTopic) -> Batch:
        preceding = polled.before({place.topic_partition: offset})
        records = preceding.count(place.topic_partition)
        return decode_batch({topic.name: preceding}, (place.cut_at(offset, records),), {topic.name: topic})

    return build


def _dead_letter_batch(log: TopicPartitionState, offset: int, why: str) -> _BuildBatch:
    """Return a builder of a batch that rejects one record, or one unreadable record batch, undecoded."""

    def build(polled: Polled, place: OffsetRange, topic: IngestedTopic) -> Batch | None:
        row = _lowest_row(polled)
        if row is None or (row["detail"] is None and row["offset"] != offset):
            return None
        if row["offset"] >= log.end_offset:
            raise UsageError(
                f"the record batch at {place.topic}-{place.topic_partition}@{offset} has an unknown end: its header is "
                "damaged too. Delete the records below the next batch, then `karmalake drain --accept-loss`"
            )
        detail = " ".join(filter(None, [f"Skipped: {why.strip()}", row["detail"]]))
        rejected = pa.Table.from_pylist([row | {"reason": Reason.SKIPPED.value, "detail": detail}], REJECTED)
        decoded = replace(NOTHING, rejected=rejected)
        name = f"kafka:{topic.name}"
        return Batch(name, rejected.select(RECORD.names), decoded, (place.cut_at(row["offset"] + 1, 1),))

    return build


def _lowest_row(polled: Polled) -> dict[str, Any] | None:
    """Return the row with the lowest offset; reason and detail are None if it is a record."""
    rows: list[dict[str, Any]] = []
    for table in (polled.records, polled.unreadable):
        rows += table.sort_by("offset").slice(0, 1).to_pylist()
    found = min(rows, key=itemgetter("offset"), default=None)
    return found and {"reason": None, "detail": None} | found


@dataclass(slots=True)
class _BoundedSource:
    """A source that reads one topic partition up to an offset, in batches that `build` makes."""

    source: KafkaSource
    topic_id: str
    log: TopicPartitionState
    end_offset: int
    build: _BuildBatch
    position: int = 0

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch; None at the end, or if no records arrived."""
        at = checkpoint(self.topic_id, self.log.partition)
        self.position = self.log.begin_offset if at is None else at
        if self.position >= self.end_offset:
            return None
        found = self.source.read(checkpoint)
        if found is None:
            return None
        polled, (place,) = found
        self.position = place.next_offset
        return self.build(polled.get(place.topic, NO_RECORDS), place, self.source.topics[place.topic])

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoint after the last polled batch."""
        following = self.source.next_checkpoint()
        return lambda topic_id, n: None if (at := following(topic_id, n)) is None else min(at, self.end_offset)

    def remaining_records(self) -> int:
        """Return the number of offsets before the end."""
        return max(0, self.end_offset - self.position)

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Commit the offsets to the consumer group, as ingest does."""
        self.source.acknowledge(ranges)

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return the ranges that the log no longer holds."""
        return self.source.losses(checkpoint)

    def halt(self, halted: HaltedPartition) -> None:
        """Raise RejectedError: too many of the records before it were rejected."""
        raise RejectedError(str(halted))
