"""One record set aside undecoded, as a dead letter, on the record: the way past what ingest dies of.

It is a batch like any other: what stands before the record is drained, the record is read and not decoded, and the
commit accounts for it (`nothing-lost`). Requeuing it later decodes it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pyarrow as pa

from pipelines.bus.topics import TopicPartitionState, describe_topic
from pipelines.contract.decode import Decoded
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, PLACE, RECORD, REJECTED
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import RejectedError, UsageError
from pipelines.ingest.batches import Polled
from pipelines.ingest.guard import Halted
from pipelines.ingest.ranges import Batch, Checkpoint, OffsetRange
from pipelines.ingest.source import KafkaSource, as_batch, open_damaged_source, open_source
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import checkpoint_id, create_lake
from pipelines.settings import ContractSettings, Settings

_PARTITION = re.compile(r"(?P<topic>.+)-(?P<partition>[0-9]{1,9})")
_PLACE = re.compile(_PARTITION.pattern + r"@(?P<offset>[0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Skipped:
    """What a skip did: records drained before the place, and the offsets that the dead letter stands for."""

    drained: int
    skipped: OffsetRange


def partition_named(settings: Settings, text: str) -> int:
    """Return the number of the topic partition that TOPIC-PARTITION names; UsageError if it is not of our topic."""
    return int(_matched(settings, _PARTITION, text, "TOPIC-PARTITION")["partition"])


def skip(settings: Settings, place: str, why: str) -> Skipped:
    """Commit the record at a place (TOPIC-PARTITION@OFFSET) as a dead letter, `skipped`, without decoding it.

    What stands before it in its topic partition is drained first. A record batch that cannot be read is set aside
    whole. Killed at any moment, it can be repeated. Raises UsageError where there is no such record, or ingest has
    passed it.
    """
    named = _matched(settings, _PLACE, place, "TOPIC-PARTITION@OFFSET")
    if not why.strip():
        raise UsageError("say why the record is skipped: it stays on the record")
    partition, offset = int(named["partition"]), int(named["offset"])
    topic_id, log = _log_with(settings, partition, offset, place)
    before: list[CommitRecord] = []
    aside: list[CommitRecord] = []
    with open_source(settings, {partition}) as source:
        upto = _Stretch(source, topic_id, log, offset, _before(offset))
        with open_ingest_from(upto, settings) as ingest:
            source.committed = ingest.last_read
            drain(ingest, before.append)
    with open_damaged_source(settings, partition) as source:
        at = _Stretch(source, topic_id, log, offset + 1, _aside(log, offset, why))
        with open_ingest_from(at, settings) as ingest:
            drain(ingest, aside.append)
    if not aside:
        raise UsageError(f"there is no record at {place}: that offset is one of Kafka's own, or was compacted away")
    return Skipped(sum(record.total("read") for record in before), aside[0].ranges[0])


def _log_with(settings: Settings, partition: int, offset: int, place: str) -> tuple[str, TopicPartitionState]:
    """Return the topic's id and the topic partition; UsageError where the offset is not to be read."""
    topic = describe_topic(settings.kafka)
    found = [log for log in topic.partitions if log.partition == partition] if topic else []
    if topic is None or not found:
        raise UsageError(f"{settings.kafka.topic} has no topic partition {partition}")
    log = found[0]
    events = create_lake(settings.lake_root).table("events")
    at = events.transaction_version(checkpoint_id(topic.topic_id, partition))
    if at is not None and offset < at:
        raise UsageError(
            f"ingest has passed {place}: the lake reads on at {at}, so that record is an event, a duplicate, a "
            "conflict or a dead letter already, and nothing has to be skipped"
        )
    if not log.begin_offset <= offset < log.end_offset:
        raise UsageError(f"there is no record at {place}: the log holds [{log.begin_offset}, {log.end_offset})")
    return topic.topic_id, log


def _matched(settings: Settings, pattern: re.Pattern[str], text: str, form: str) -> re.Match[str]:
    named = pattern.fullmatch(text)
    if named is None:
        raise UsageError(f"{text!r} names no place: say {form}, as `karmalake dead-letters list` and errors do")
    if named["topic"] != settings.kafka.topic:
        raise UsageError(f"{text} is of the topic {named['topic']}, and kafka.topic is {settings.kafka.topic}")
    return named


_Make = Callable[[str, Polled, OffsetRange, ContractSettings], Batch | None]
"""Makes the batch of a source's name, what was polled, and its range."""


def _before(offset: int) -> _Make:
    """Return what makes a batch of the records before an offset."""

    def make(name: str, polled: Polled, place: OffsetRange, contract: ContractSettings) -> Batch:
        before = polled.before({place.topic_partition: offset})
        return as_batch(name, before, (place.cut_at(offset, before.count(place.topic_partition)),), contract)

    return make


def _aside(log: TopicPartitionState, offset: int, why: str) -> _Make:
    """Return what makes a batch of one record, or one record batch that cannot be read: rejected, undecoded."""

    def make(name: str, polled: Polled, place: OffsetRange, _contract: ContractSettings) -> Batch | None:
        row = _first(polled)
        if row is None or (row["detail"] is None and row["offset"] != offset):
            return None
        if row["offset"] >= log.end_offset:
            raise UsageError(
                f"the record batch at {place.topic}-{place.topic_partition}@{offset} does not say where it ends: its "
                "header is damaged too. Delete the records below the next batch, then `karmalake drain --accept-loss`"
            )
        detail = " ".join(filter(None, [f"Skipped: {why.strip()}", row["detail"]]))
        rejected = pa.Table.from_pylist([row | {"reason": Reason.SKIPPED.value, "detail": detail}], REJECTED)
        decoded = Decoded(pa.schema([*EVENT, *PLACE]).empty_table(), rejected, pa.array([], pa.bool_()))
        return Batch(name, rejected.select(RECORD.names), decoded, (place.cut_at(row["offset"] + 1, 1),))

    return make


def _first(polled: Polled) -> dict[str, Any] | None:
    """Return the row of the lowest offset; one that is a record has no reason and no detail."""
    rows: list[dict[str, Any]] = []
    for table in (polled.records, polled.unread):
        rows += table.sort_by("offset").slice(0, 1).to_pylist()
    found = min(rows, key=itemgetter("offset"), default=None)
    return found and {"reason": None, "detail": None} | found


@dataclass(slots=True)
class _Stretch:
    """A topic partition up to an offset, in batches that `make` makes: a source that ends there."""

    source: KafkaSource
    topic_id: str
    log: TopicPartitionState
    upto: int
    make: _Make
    position: int = 0

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch; None at the end, or when nothing came."""
        at = checkpoint(self.topic_id, self.log.partition)
        self.position = self.log.begin_offset if at is None else at
        if self.position >= self.upto:
            return None
        found = self.source.read(checkpoint)
        if found is None:
            return None
        polled, (place,) = found
        self.position = place.next_offset
        return self.make(f"kafka:{place.topic}", polled, place, self.source.contract)

    def following(self) -> Checkpoint:
        """Return the checkpoint behind what was polled last."""
        following = self.source.following()
        return lambda topic_id, n: None if (at := following(topic_id, n)) is None else min(at, self.upto)

    def behind(self) -> int:
        """Return how many offsets lie before the end."""
        return max(0, self.upto - self.position)

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Tell the group, as ingest does."""
        self.source.acknowledge(ranges)

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return what the source has lost."""
        return self.source.losses(checkpoint)

    def halt(self, halted: Halted) -> None:
        """Raise RejectedError: what stands before the record is too much to be dead letters."""
        raise RejectedError(str(halted))
