"""Kafka topics as a source of batches, read by one consumer from the checkpoints of the lake.

Owns the consumer and its positions. A batch may have records of several topics, each decoded by the source of its topic
(`sources.py`). Checkpoints belong to a topic *id*: a topic that was deleted and created again under the same name is
another topic, and is read from its start. Offsets are also committed to a consumer group for lag tools; karmalake never
reads them back.
"""

import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.best_effort import best_effort
from pipelines.bus.clients import admin_client, consumer, translate_errors
from pipelines.bus.topics import topic_id_of
from pipelines.errors import KarmalakeError, LostRecordsError, TransientError, UsageError
from pipelines.ingest.batch import Batch, Checkpoint, LastRead, OffsetRange, Place
from pipelines.ingest.decoding import decode_batch
from pipelines.ingest.filling import NEVER
from pipelines.ingest.group import GroupMember, join_group
from pipelines.ingest.group_offsets import GroupOffsets, alter_offsets
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.polling import Poller, look_up
from pipelines.ingest.receive import in_place_client
from pipelines.ingest.record_batches import (
    Polled,
    install_raw_batches,
    install_unchecked_raw_batches,
    to_columns,
)
from pipelines.ingest.sources import IngestedTopic, explain_missing_topic, open_topics
from pipelines.ingest.truncation import LOG_TRUNCATION, find_truncated, last_read, seek
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_FETCH_BYTES = 4 * 1024 * 1024
"""Bytes of one topic partition per fetch; a larger record batch is still read."""
Read = tuple[dict[str, Polled], tuple[OffsetRange, ...]]
"""What a poll read, by topic, and the offset ranges that it covers."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """Records that a log no longer has: the range back to where reading continues, and the cause."""

    range: OffsetRange
    cause: str


@dataclass(slots=True)
class KafkaSource:
    """A consumer of all topics that are ingested; `open_source` makes it."""

    settings: Settings
    topics: Mapping[str, IngestedTopic]
    """By name."""
    consumer: Any
    admin: Any
    stopping: threading.Event = NEVER
    """Ends a poll that waits for records, once it is set."""
    topic_ids: dict[str, str] = field(default_factory=dict[str, str])
    """The id of each topic as of the last read, by name."""
    positions: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])
    only: frozenset[TopicPartition] | None = None
    """The topic partitions to read; None means all."""
    group: GroupMember | None = None
    """The membership of the consumer group, if several ingesters share the topic partitions."""
    halted: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])
    """The offset at which each halted topic partition stands, until its checkpoint moves."""
    committed: Callable[[str, int], LastRead | None] = lambda _topic_id, _partition: None
    """Returns the last record before the checkpoint of a topic partition, from the lake."""
    last_reads: dict[TopicPartition, tuple[int, LastRead | None]] = field(
        default_factory=dict[TopicPartition, tuple[int, LastRead | None]]
    )
    """By topic partition: a position, and the last record before it."""
    poller: Poller = field(init=False)
    group_offsets: GroupOffsets = field(init=False)

    def __post_init__(self) -> None:
        """Create the poller, and the offsets of the consumer group."""
        self.poller = Poller(self.settings, self.consumer, self.stopping)
        self.group_offsets = GroupOffsets(self.settings.kafka.group_id, self._commit_group_offsets)

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch from the checkpoints on; None if nothing came within `max_wait_seconds`.

        Raises LostRecordsError if records between a checkpoint and the log's start, or above the log's end, are lost,
        or if the last record before a checkpoint was overwritten. Raises TransientError if the brokers do not answer,
        or if only a damaged batch is left to read.
        """
        found = self.read(checkpoint)
        return found and decode_batch(*found, self.topics)

    def read(self, checkpoint: Checkpoint) -> Read | None:
        """Poll without decoding."""
        with translate_errors(self.settings.kafka, f"reading {self._names}"):
            if self.group:
                self.only = self.group.assigned()
            topic_ids, tps = self._describe_topics()
            starts, self.positions = self._seek(topic_ids, tps, checkpoint), {}  # if the read fails, seek again
            try:
                polled = self._fetch(starts)
                ranges = tuple(self._ranges(starts, polled))
            except (OffsetOutOfRangeError, LOG_TRUNCATION) as error:
                raise self._explain_refusal(starts, error) from error
            if recreated := self._recreated(topic_ids):
                names = ", ".join(recreated)
                _LOG.warning("topic %s was deleted and created again during the read: reading the new one", names)
                return self.read(checkpoint)
        self.last_reads |= {TopicPartition(r.topic, r.topic_partition): (r.next_offset, r.last) for r in ranges}
        self.positions = starts | {TopicPartition(r.topic, r.topic_partition): r.next_offset for r in ranges}
        return (polled, ranges) if ranges else None

    def halt(self, halted: HaltedPartition) -> None:
        """Stop reading a topic partition until its checkpoint moves."""
        self.halted[TopicPartition(halted.topic, halted.topic_partition)] = halted.next_offset

    def describe_ids(self) -> dict[str, str]:
        """Return the current id of each topic, by name. Raises UsageError for a topic that does not exist."""
        with translate_errors(self.settings.kafka, f"describing {self._names}"):
            return self._describe_topics()[0]

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoints after the last poll; none for a topic that was recreated since."""
        return self._as_checkpoint(self.positions)

    def remaining_records(self) -> int:
        """Return the number of offsets between the positions and the ends of the topic partitions.

        The embedded broker understates it by up to one record batch.
        """
        positions = {tp: offset for tp, offset in self.positions.items() if tp not in self.halted}
        with translate_errors(self.settings.kafka, f"looking for the end of {self._names}"):
            ends = look_up(self.settings, self.consumer.end_offsets, positions)
        return sum(max(0, ends[tp] - offset) for tp, offset in positions.items())

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Commit the offsets to the consumer group; a failure is logged, and retried with a later batch."""
        self.group_offsets.acknowledge(ranges)

    @property
    def _names(self) -> str:
        return ", ".join(self.topics)

    def _as_checkpoint(self, offsets: Mapping[TopicPartition, int]) -> Checkpoint:
        """Return offsets as the checkpoints of the topics of the last read."""
        by_place: dict[Place, int] = {(self.topic_ids[tp.topic], tp.partition): at for tp, at in offsets.items()}
        return lambda topic_id, partition: by_place.get((topic_id, partition))

    def _commit_group_offsets(self, next_offsets: dict[TopicPartition, int]) -> None:
        """Commit the offsets of the topic partitions that are still read here."""
        offsets = {
            tp: OffsetAndMetadata(offset, "", -1)
            for tp, offset in next_offsets.items()
            if self.only is None or tp in self.only  # another member commits those of the others
        }
        group_id = self.settings.kafka.group_id
        with translate_errors(self.settings.kafka, f"committing the offsets of the group {group_id}"):
            if self.group:
                self.group.member.commit(offsets)
            else:  # so that reading needs no permission on the group
                alter_offsets(self.admin, group_id, offsets)

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return a range for each topic partition whose log lost records at the checkpoint."""
        with translate_errors(self.settings.kafka, f"looking for the bounds of {self._names}"):
            return tuple(loss.range for loss in self._losses(checkpoint))

    def _losses(self, checkpoint: Checkpoint) -> list[_Loss]:
        topic_ids, tps = self._describe_topics()
        checkpoints = {tp: checkpoint(topic_ids[tp.topic], tp.partition) for tp in tps}
        return self._find_losses(topic_ids, {tp: at for tp, at in checkpoints.items() if at is not None})

    def _find_losses(self, topic_ids: dict[str, str], known: dict[TopicPartition, int]) -> list[_Loss]:
        """Compare checkpoints (next_offset by topic partition) with the logs."""
        begins = look_up(self.settings, self.consumer.beginning_offsets, known)
        ends = look_up(self.settings, self.consumer.end_offsets, known)
        causes: dict[TopicPartition, str] = {}
        for tp, offset in known.items():
            if offset < begins[tp]:
                causes[tp] = f"retention removed {begins[tp] - offset} records that were never read"
            elif offset > ends[tp]:
                causes[tp] = "the log ends before the checkpoint, so records were lost on the broker"
        intact = {tp: offset for tp, offset in known.items() if tp not in causes}
        causes |= self._find_truncated(topic_ids, intact, begins)
        return [
            _Loss(self._lost_range(topic_ids, tp, known[tp], begins[tp]), cause) for tp, cause in sorted(causes.items())
        ]

    def _find_truncated(
        self, topic_ids: dict[str, str], known: dict[TopicPartition, int], begins: dict[TopicPartition, int]
    ) -> dict[TopicPartition, str]:
        """Return a message for each log in which the last record before a position was overwritten."""
        last_reads = {tp: last for tp in known if (last := self._last_read(topic_ids, tp, known))}
        compared = {tp: last for tp, last in last_reads.items() if last.offset >= begins[tp]}
        return {
            tp: f"the record at offset {compared[tp].offset} is not the one that was read there "
            f"(leader epoch {compared[tp].epoch}): the log was truncated and grew again, so records before the "
            "checkpoint may never have been read"
            for tp in (find_truncated(self.settings.kafka, compared) if compared else ())
        }

    def _lost_range(self, topic_ids: dict[str, str], tp: TopicPartition, offset: int, begin: int) -> OffsetRange:
        return replace(self._range(topic_ids, tp, offset, begin), lost=max(0, begin - offset))

    def _range(self, topic_ids: dict[str, str], tp: TopicPartition, start: int, end: int) -> OffsetRange:
        """Return a range of a topic partition, with the source of its topic."""
        topic = self.topics[tp.topic]
        return OffsetRange(
            topic_ids[tp.topic], tp.topic, tp.partition, start, end, source=topic.source, source_digest=topic.digest
        )

    def _last_read(
        self, topic_ids: dict[str, str], tp: TopicPartition, positions: dict[TopicPartition, int]
    ) -> LastRead | None:
        """Return the last record before a position, as this source read it or else as the lake has it."""
        position, last = self.last_reads.get(tp, (None, None))
        if topic_ids[tp.topic] != self.topic_ids.get(tp.topic) or position != positions[tp]:
            last = self.committed(topic_ids[tp.topic], tp.partition)
            self.last_reads[tp] = (positions[tp], last)
        return last if last and last.offset < positions[tp] else None

    def _describe_topics(self) -> tuple[dict[str, str], list[TopicPartition]]:
        """Return the id of each topic by name, and the topic partitions to read."""
        described = self.admin.describe_topics(list(self.topics))
        for topic in described:
            self._require_topic(topic)
        found = {
            TopicPartition(topic["name"], partition["partition_index"])
            for topic in described
            for partition in topic["partitions"]
        }
        missing = frozenset[TopicPartition]() if self.group else (self.only or frozenset()) - found
        for tp in sorted(missing):
            number = sum(other.topic == tp.topic for other in found)
            raise UsageError(f"{tp.topic} has no topic partition {tp.partition}: it has {number}")
        topic_ids = {topic["name"]: topic_id_of(self.settings.kafka, topic) for topic in described}
        return topic_ids, sorted(found if self.only is None else found & self.only)

    def _require_topic(self, topic: dict[str, Any]) -> None:
        """Raise what a topic's metadata tell: UsageError if it does not exist, with the name of its source."""
        if topic["error_code"] == UnknownTopicOrPartitionError.errno:
            raise UsageError(explain_missing_topic(self.settings, topic["name"]))
        if topic["error_code"]:
            raise for_code(topic["error_code"])(f"topic {topic['name']}")

    def _recreated(self, topic_ids: dict[str, str]) -> list[str]:
        """Return the topics whose id is another one now."""
        now, _ = self._describe_topics()
        return [name for name, topic_id in now.items() if topic_id != topic_ids[name]]

    def _seek(
        self, topic_ids: dict[str, str], tps: list[TopicPartition], checkpoint: Checkpoint
    ) -> dict[TopicPartition, int]:
        """Move the consumer to the checkpoints; return the start offset of each topic partition."""
        same = {name for name, topic_id in topic_ids.items() if topic_id == self.topic_ids.get(name)}
        known = {tp: checkpoint(topic_ids[tp.topic], tp.partition) for tp in tps}
        self.halted = {
            tp: offset for tp, offset in self.halted.items() if tp.topic in same and known.get(tp) in {offset, None}
        }
        known = {tp: offset for tp, offset in known.items() if tp not in self.halted}
        if topic_ids != self.topic_ids or known.keys() != self.positions.keys():
            self.consumer.assign(list(known))
            self.last_reads = {tp: read for tp, read in self.last_reads.items() if tp.topic in same}
            self.topic_ids, self.positions = topic_ids, {}
        never_read = [tp for tp, offset in known.items() if offset is None]
        begins = look_up(self.settings, self.consumer.beginning_offsets, never_read) if never_read else {}
        starts = {tp: begins[tp] if offset is None else offset for tp, offset in known.items()}
        moved = {tp: start for tp, start in starts.items() if self.positions.get(tp) != start}
        self._require_untruncated(topic_ids, {tp: start for tp, start in moved.items() if known[tp] is not None})
        self.last_reads |= {tp: (start, None) for tp, start in moved.items() if known[tp] is None}
        for tp, start in moved.items():
            last = self._last_read(topic_ids, tp, starts)
            epoch = last.epoch if last and last.offset + 1 == start else -1
            seek(self.consumer, tp, start, epoch)
        return starts

    def _require_untruncated(self, topic_ids: dict[str, str], known: dict[TopicPartition, int]) -> None:
        """Raise LostRecordsError where the last record before a position was overwritten (`nothing-lost`).

        The offset alone does not show it: a truncated log that grew again has other records at the same offsets.
        """
        known = {tp: offset for tp, offset in known.items() if self._last_read(topic_ids, tp, known)}
        begins = look_up(self.settings, self.consumer.beginning_offsets, known) if known else {}
        if causes := self._find_truncated(topic_ids, known, begins):
            ranges = {tp: self._lost_range(topic_ids, tp, known[tp], begins[tp]) for tp in causes}
            raise LostRecordsError(_explain([_Loss(ranges[tp], cause) for tp, cause in sorted(causes.items())]))

    def _fetch(self, starts: dict[TopicPartition, int]) -> dict[str, Polled]:
        """Poll from the positions of the consumer; return the records of each topic as columns."""
        polled = self.poller.fetch(starts)
        return {name: self._to_columns(name, polled, starts) for name in dict.fromkeys(item.topic for item in polled)}

    def _to_columns(self, name: str, polled: list[ConsumerRecord], starts: dict[TopicPartition, int]) -> Polled:
        """Return the polled batches of one topic as columns."""
        of_topic = {tp.partition: start for tp, start in starts.items() if tp.topic == name}
        return to_columns([item for item in polled if item.topic == name], of_topic, self.topic_ids[name])

    def _ranges(self, starts: dict[TopicPartition, int], polled: dict[str, Polled]) -> Iterator[OffsetRange]:
        for tp, start in starts.items():
            end = self.consumer.position(tp)
            if end > start:
                of_topic = polled.get(tp.topic)
                read = of_topic.count(tp.partition) if of_topic else 0
                last = last_read(of_topic, tp.partition) if of_topic and read else None
                last = last if read else self._last_read(self.topic_ids, tp, starts)
                yield replace(self._range(self.topic_ids, tp, start, end), last=last).with_records(read)

    def _explain_refusal(self, starts: dict[TopicPartition, int], error: Exception) -> KarmalakeError:
        """Return the error to raise for positions that a broker refused."""
        if losses := self._losses(self._as_checkpoint(starts)):
            return LostRecordsError(_explain(losses))
        return TransientError(f"the log of {self._names} changed during the read ({error}); start again")


def _explain(losses: list[_Loss]) -> str:
    places = (f"{loss.range.topic}-{loss.range.topic_partition}@{loss.range.start_offset}" for loss in losses)
    found = "; ".join(f"{place}: {loss.cause}" for place, loss in zip(places, losses, strict=True))
    return (
        f"{found}. Nothing was committed. If the records cannot be recovered, `karmalake drain --accept-loss` "
        "records the loss in the commits table and continues at the log's start (dedup makes that harmless)"
    )


@contextmanager
def open_source(
    settings: Settings,
    only: Collection[TopicPartition] = (),
    *,
    topics: Collection[str] = (),
    stopping: threading.Event = NEVER,
) -> Generator[KafkaSource]:
    """Yield a source of all topics that are ingested, connected to the brokers; closing it commits group offsets only.

    With `only`, it reads these topic partitions and does not share them; with `topics`, these topics. `stopping` ends
    a poll that waits for records, once it is set. Raises TransientError or ConfigurationError, and what `open_topics`
    raises.
    """
    shared = settings.ingest.share_partitions and not (only or topics)
    names = [*topics, *(tp.topic for tp in only)]
    with open_topics(settings, names) as opened, _open_consumer(settings, {}) as reader:
        install_raw_batches(reader)
        with (
            admin_client(settings.kafka) as admin,
            join_group(settings.kafka, opened) if shared else nullcontext() as group,
        ):
            source = KafkaSource(settings, opened, reader, admin, stopping, only=frozenset(only) or None, group=group)
            yield source
            best_effort(source.group_offsets.finish, "acknowledging commits to the bus")()


@contextmanager
def open_unchecked_source(settings: Settings, tp: TopicPartition) -> Generator[KafkaSource]:
    """Yield a source of one topic partition in which a record batch with a wrong checksum is a rejected record.

    Raises like `open_source`.
    """
    with open_topics(settings, [tp.topic]) as opened, _open_consumer(settings, {"check_crcs": False}) as reader:
        install_unchecked_raw_batches(reader)
        with admin_client(settings.kafka) as admin:
            yield KafkaSource(settings, opened, reader, admin, only=frozenset({tp}))


@contextmanager
def _open_consumer(settings: Settings, options: dict[str, Any]) -> Generator[Any]:
    with (
        translate_errors(settings.kafka, "connecting"),
        consumer(settings.kafka, **consumer_options(settings), **options) as c,
    ):
        yield c


def consumer_options(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a consumer beside `client_config`."""
    return {
        "group_id": None,  # so that reading needs no permission on the group
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "max_partition_fetch_bytes": _FETCH_BYTES,
        # A fifth of a poll's wait: a poll leaves a fetch with the broker, which answers no other request on that
        # connection until the fetch ends. The client requires less than the timeout of a request.
        "fetch_max_wait_ms": int(
            min(settings.ingest.max_wait_seconds * 200, settings.kafka.request_timeout_seconds * 500)
        ),
        "kafka_client": in_place_client,
    }
