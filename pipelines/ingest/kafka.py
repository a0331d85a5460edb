"""A Kafka topic as a source of batches, read from the checkpoints of the lake.

Owns the consumer and its positions. Checkpoints belong to a topic *id*: a topic that was deleted and created again
under the same name is another topic, and is read from its start. Offsets are also committed to a consumer group for lag
tools; karmalake never reads them back.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from math import ceil
from typing import Any

import pyarrow as pa
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaTimeoutError,
    NoError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.bus.clients import admin_client, consumer, translate_errors
from pipelines.bus.records import DamagedBatchError, limit_polls
from pipelines.bus.topics import topic_id_of
from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.errors import KarmalakeError, LostRecordsError, TransientError, UsageError
from pipelines.ingest.batch import Batch, Checkpoint, LastRead, OffsetRange
from pipelines.ingest.filling import Clock, Filling
from pipelines.ingest.group import GroupMember, join_group
from pipelines.ingest.group_offsets import GroupOffsets
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.receive import in_place_client
from pipelines.ingest.record_batches import (
    Polled,
    count,
    install_raw_batches,
    install_unchecked_raw_batches,
    to_columns,
)
from pipelines.ingest.truncation import LOG_TRUNCATION, find_truncated, last_read, seek
from pipelines.settings import ContractSettings, IngestSettings, KafkaSettings, Settings

_LOG = logging.getLogger(__name__)
_FETCH_BYTES = 4 * 1024 * 1024
"""Bytes of one topic partition per fetch; a larger record batch is still read."""
_MAX_POLL_BATCHES = 64
"""Record batches per poll."""
_COORDINATOR_STARTING = (CoordinatorNotAvailableError, CoordinatorLoadInProgressError)
"""A new cluster first creates the offsets topic; a restarted one first loads it."""
_LOOKUP_MS = 3_000
_NEXT_FETCH_MS = 100
"""How long a batch without a linger waits for the next records, if the broker is known to have them."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """Records that a log no longer has: the range back to where reading continues, and the cause."""

    range: OffsetRange
    cause: str


@dataclass(slots=True)
class KafkaSource:
    """A consumer of one topic; `open_source` makes it."""

    kafka: KafkaSettings
    ingest: IngestSettings
    contract: ContractSettings
    consumer: Any
    admin: Any
    topic_id: str = ""
    positions: dict[int, int] = field(default_factory=dict)
    only: frozenset[int] | None = None
    """The topic partitions to read; None means all."""
    group: GroupMember | None = None
    """The membership of the consumer group, if several ingesters share the topic partitions."""
    halted: dict[int, int] = field(default_factory=dict)
    """The offset at which each halted topic partition stands, until its checkpoint moves."""
    committed: Callable[[str, int], LastRead | None] = lambda _topic_id, _partition: None
    """Returns the last record before the checkpoint of a topic partition, from the lake."""
    last_reads: dict[int, tuple[int, LastRead | None]] = field(default_factory=dict[int, tuple[int, LastRead | None]])
    """By topic partition: a position, and the last record before it."""
    reported: set[str] = field(default_factory=set[str])
    """Damaged batches that were logged: every fetch finds them again."""
    clock: Clock = time.monotonic
    """Measures how long a batch lingers."""
    group_offsets: GroupOffsets = field(init=False)

    def __post_init__(self) -> None:
        """Create the offsets of the consumer group."""
        self.group_offsets = GroupOffsets(self.kafka.group_id, self._commit_group_offsets)

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch from the checkpoints on; None if nothing came within `max_wait_seconds`.

        Raises LostRecordsError if records between a checkpoint and the log's start, or above the log's end, are lost,
        or if the last record before a checkpoint was overwritten. Raises TransientError if the brokers do not answer,
        or if only a damaged batch is left to read.
        """
        found = self.read(checkpoint)
        if found is None:
            return None
        return decode_batch(f"kafka:{self.kafka.topic}", *found, self.contract)

    def read(self, checkpoint: Checkpoint) -> tuple[Polled, tuple[OffsetRange, ...]] | None:
        """Poll without decoding: return the records and the offset ranges that they cover."""
        with translate_errors(self.kafka, f"reading {self.kafka.topic}"):
            if self.group:
                self.only = self.group.assigned()
            topic_id, partitions = self._describe_topic()
            starts, self.positions = self._seek(topic_id, partitions, checkpoint), {}  # if the read fails, seek again
            try:
                polled = self._fetch(starts)
                ranges = tuple(self._ranges(starts, polled))
            except (OffsetOutOfRangeError, LOG_TRUNCATION) as error:
                raise self._explain_refusal(starts, error) from error
            if self._describe_topic()[0] != topic_id:
                _LOG.warning(
                    "topic %s was deleted and created again during the read: reading the new one", self.kafka.topic
                )
                return self.read(checkpoint)
        self.last_reads |= {r.topic_partition: (r.next_offset, r.last) for r in ranges}
        self.positions = starts | {r.topic_partition: r.next_offset for r in ranges}
        return (polled, ranges) if ranges else None

    def halt(self, halted: HaltedPartition) -> None:
        """Stop reading a topic partition until its checkpoint moves."""
        self.halted[halted.topic_partition] = halted.next_offset

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoints after the last poll; none for a topic that was recreated since."""
        read_topic_id, positions = self.topic_id, dict(self.positions)
        return lambda topic_id, partition: positions.get(partition) if topic_id == read_topic_id else None

    def remaining_records(self) -> int:
        """Return the number of offsets between the positions and the ends of the topic partitions.

        The embedded broker understates it by up to one record batch.
        """
        positions = {partition: offset for partition, offset in self.positions.items() if partition not in self.halted}
        with translate_errors(self.kafka, f"looking for the end of {self.kafka.topic}"):
            ends = self._look_up(self.consumer.end_offsets, list(map(self._tp, positions)))
        return sum(max(0, ends[self._tp(partition)] - offset) for partition, offset in positions.items())

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Commit the offsets to the consumer group; a failure is logged, and retried with a later batch."""
        self.group_offsets.acknowledge(ranges)

    def _commit_group_offsets(self, next_offsets: dict[int, int]) -> None:
        """Commit the offsets of the topic partitions that are still read here."""
        offsets = {
            self._tp(partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in next_offsets.items()
            if self.only is None or partition in self.only  # another member commits those of the others
        }
        with translate_errors(self.kafka, f"committing the offsets of the group {self.kafka.group_id}"):
            self._send_group_offsets(offsets)

    def _send_group_offsets(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets through the admin client, so that reading needs no permission on the group."""
        if self.group:
            self.group.member.commit(offsets)
            return
        deadline = time.monotonic() + _LOOKUP_MS / 1000
        while True:
            try:
                results = self.admin.alter_group_offsets(self.kafka.group_id, offsets)
                break
            except _COORDINATOR_STARTING:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_NEXT_FETCH_MS / 1000)
        for error in filter(lambda error: error is not NoError, results.values()):
            raise error(f"group {self.kafka.group_id}")

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return a range for each topic partition whose log lost records at the checkpoint."""
        with translate_errors(self.kafka, f"looking for the bounds of {self.kafka.topic}"):
            return tuple(loss.range for loss in self._losses(checkpoint))

    def _losses(self, checkpoint: Checkpoint) -> list[_Loss]:
        topic_id, partitions = self._describe_topic()
        known = {n: offset for n in partitions if (offset := checkpoint(topic_id, n)) is not None}
        return self._find_losses(topic_id, known)

    def _find_losses(self, topic_id: str, known: dict[int, int]) -> list[_Loss]:
        """Compare checkpoints (next_offset by topic partition) with the logs."""
        tps = list(map(self._tp, known))
        begins = self._look_up(self.consumer.beginning_offsets, tps)
        ends = self._look_up(self.consumer.end_offsets, tps)
        causes: dict[int, str] = {}
        for tp in tps:
            offset, begin = known[tp.partition], begins[tp]
            if offset < begin:
                causes[tp.partition] = f"retention removed {begin - offset} records that were never read"
            elif offset > ends[tp]:
                causes[tp.partition] = "the log ends before the checkpoint, so records were lost on the broker"
        causes |= self._find_truncated(topic_id, {n: offset for n, offset in known.items() if n not in causes}, begins)
        return [
            _Loss(self._lost_range(topic_id, n, known[n], begins[self._tp(n)]), cause)
            for n, cause in sorted(causes.items())
        ]

    def _find_truncated(self, topic_id: str, known: dict[int, int], begins: dict[Any, int]) -> dict[int, str]:
        """Return a message for each log in which the last record before a position was overwritten."""
        last_reads = {self._tp(n): last for n in known if (last := self._last_read(topic_id, n, known))}
        compared = {tp: last for tp, last in last_reads.items() if last.offset >= begins[tp]}
        return {
            tp.partition: f"the record at offset {compared[tp].offset} is not the one that was read there "
            f"(leader epoch {compared[tp].epoch}): the log was truncated and grew again, so records before the "
            "checkpoint may never have been read"
            for tp in (find_truncated(self.kafka, compared) if compared else ())
        }

    def _lost_range(self, topic_id: str, partition: int, offset: int, begin: int) -> OffsetRange:
        return OffsetRange(topic_id, self.kafka.topic, partition, offset, begin, lost=max(0, begin - offset))

    def _last_read(self, topic_id: str, partition: int, positions: dict[int, int]) -> LastRead | None:
        """Return the last record before a position, as this source read it or else as the lake has it."""
        position, last = self.last_reads.get(partition, (None, None))
        if topic_id != self.topic_id or position != positions[partition]:
            last = self.committed(topic_id, partition)
            self.last_reads[partition] = (positions[partition], last)
        return last if last and last.offset < positions[partition] else None

    def _look_up(self, lookup: Callable[..., dict[Any, int]], tps: list[TopicPartition]) -> dict[Any, int]:
        """Look up offsets, with retries: the client may miss a change of leader and wait until the timeout."""
        deadline = time.monotonic() + self.kafka.request_timeout_seconds
        while True:
            try:
                return lookup(tps, timeout_ms=_LOOKUP_MS)
            except KafkaTimeoutError:
                if time.monotonic() > deadline:
                    raise

    def _describe_topic(self) -> tuple[str, list[int]]:
        """Return the id of the topic and the topic partitions to read."""
        (topic,) = self.admin.describe_topics([self.kafka.topic])
        if topic["error_code"] == UnknownTopicOrPartitionError.errno:
            raise UsageError(
                f"topic {self.kafka.topic} does not exist on {self.kafka.bootstrap_servers}: "
                "create it with `karmalake topics ensure`"
            )
        if topic["error_code"]:
            raise for_code(topic["error_code"])(f"topic {self.kafka.topic}")
        partitions = {partition["partition_index"] for partition in topic["partitions"]}
        missing = frozenset[int]() if self.group else (self.only or frozenset()) - partitions
        if missing:
            raise UsageError(f"{self.kafka.topic} has no topic partition {min(missing)}: it has {len(partitions)}")
        return topic_id_of(self.kafka, topic), sorted(partitions if self.only is None else partitions & self.only)

    def _seek(self, topic_id: str, partitions: list[int], checkpoint: Checkpoint) -> dict[int, int]:
        """Move the consumer to the checkpoints; return the start offset of each topic partition."""
        known = {n: checkpoint(topic_id, n) for n in partitions}
        self.halted = {
            n: offset
            for n, offset in self.halted.items()
            if topic_id == self.topic_id and known.get(n) in {offset, None}
        }
        known = {n: offset for n, offset in known.items() if n not in self.halted}
        partitions = list(known)
        if topic_id != self.topic_id or set(partitions) != set(self.positions):
            self.consumer.assign(list(map(self._tp, partitions)))
            self.last_reads = self.last_reads if topic_id == self.topic_id else {}
            self.topic_id, self.positions = topic_id, {}
        never_read = [self._tp(n) for n, offset in known.items() if offset is None]
        begins = self._look_up(self.consumer.beginning_offsets, never_read) if never_read else {}
        starts = {n: begins[self._tp(n)] if offset is None else offset for n, offset in known.items()}
        moved = {n: start for n, start in starts.items() if self.positions.get(n) != start}
        self._require_untruncated(topic_id, {n: start for n, start in moved.items() if known[n] is not None})
        self.last_reads |= {n: (start, None) for n, start in moved.items() if known[n] is None}
        for partition, start in moved.items():
            last = self._last_read(topic_id, partition, starts)
            epoch = last.epoch if last and last.offset + 1 == start else -1
            seek(self.consumer, self._tp(partition), start, epoch)
        return starts

    def _require_untruncated(self, topic_id: str, known: dict[int, int]) -> None:
        """Raise LostRecordsError where the last record before a position was overwritten (`nothing-lost`).

        The offset alone does not show it: a truncated log that grew again has other records at the same offsets.
        """
        tps = [self._tp(n) for n in known if self._last_read(topic_id, n, known)]
        begins = self._look_up(self.consumer.beginning_offsets, tps) if tps else {}
        known = {tp.partition: known[tp.partition] for tp in tps}
        if causes := self._find_truncated(topic_id, known, begins):
            ranges = {n: self._lost_range(topic_id, n, known[n], begins[self._tp(n)]) for n in causes}
            raise LostRecordsError(_explain([_Loss(ranges[n], cause) for n, cause in sorted(causes.items())]))

    def _fetch(self, starts: dict[int, int]) -> Polled:
        """Poll for the first records, then until the batch is complete.

        Record batches are not split, so a batch may exceed its limits by one of them.
        """
        damaged: dict[int, DamagedBatchError] = {}
        self.consumer.resume(*self.consumer.paused())  # a new leader may have an undamaged replica
        polled = self._await_records(starts, damaged)
        if polled:
            self._fill(polled, starts, damaged)
        elif damaged and not self._has_more(starts.keys() - damaged.keys()):
            raise next(iter(damaged.values()))
        return to_columns(polled, starts, self.topic_id)

    def _await_records(self, starts: dict[int, int], damaged: dict[int, DamagedBatchError]) -> list[ConsumerRecord]:
        """Poll until records come, or until every log is known to have none after its start."""
        limit_polls(self.consumer, self.ingest.max_batch_bytes, self.ingest.max_batch_records)
        wait_ms, deadline = int(self.ingest.max_wait_seconds * 1000), time.monotonic() + _LOOKUP_MS / 1000
        while True:
            found = self._poll(wait_ms, damaged)
            if found or self._is_every_end_known(starts) or time.monotonic() > deadline:
                return found

    def _fill(
        self, polled: list[ConsumerRecord], starts: dict[int, int], damaged: dict[int, DamagedBatchError]
    ) -> None:
        """Add records to the first ones until the batch is complete (`filling.py`)."""
        limits = self.ingest
        filling = Filling(limits.max_batch_records, limits.max_batch_bytes, limits.linger_seconds, self.clock)
        filling.add(*_extent(polled))
        while wait_ms := self._wait_ms(filling, starts.keys() - damaged.keys()):
            limit_polls(self.consumer, filling.bytes_left, filling.records_left)
            found = self._poll(wait_ms, damaged)
            if not (found or filling.lingers):
                return
            filling.add(*_extent(found))
            polled += found

    def _wait_ms(self, filling: Filling, partitions: Collection[int]) -> int:
        """Return how long to wait for the next records of a batch; 0 if it is complete."""
        if filling.lingers:
            return ceil(filling.seconds_left() * 1000)
        return _NEXT_FETCH_MS if filling.seconds_left() and not self._is_at_end(partitions) else 0

    def _poll(self, wait_ms: int, damaged: dict[int, DamagedBatchError]) -> list[ConsumerRecord]:
        """Poll; pause each topic partition whose next batch is damaged and add it to `damaged`: the others continue."""
        while True:
            try:
                return list(chain.from_iterable(self.consumer.poll(wait_ms, max_records=_MAX_POLL_BATCHES).values()))
            except DamagedBatchError as error:
                self.consumer.pause(error.place)
                damaged[error.place.partition] = error
                if (message := str(error.args[0])) not in self.reported:
                    self.reported.add(message)
                    _LOG.warning("%s; its topic partition is paused, the others continue", message)

    def _has_more(self, partitions: Collection[int]) -> bool:
        """Return whether any of the topic partitions has records after the consumer's position."""
        tps = list(map(self._tp, partitions))
        ends = self._look_up(self.consumer.end_offsets, tps) if tps else {}
        return any(ends[tp] > self.consumer.position(tp) for tp in tps)

    def _is_every_end_known(self, starts: dict[int, int]) -> bool:
        """Return whether every topic partition was fetched once: only then is it known that its log has the start."""
        return all(self.consumer.highwater(self._tp(partition)) is not None for partition in starts)

    def _is_at_end(self, partitions: Collection[int]) -> bool:
        """Return whether the consumer has read up to the last known ends, so that a batch may stay small."""
        tps = map(self._tp, partitions)
        return all(self.consumer.position(tp) >= (self.consumer.highwater(tp) or 0) for tp in tps)

    def _ranges(self, starts: dict[int, int], polled: Polled) -> Iterator[OffsetRange]:
        for partition, start in starts.items():
            end = self.consumer.position(self._tp(partition))
            if end > start:
                read = polled.count(partition)
                gaps = end - start - read
                last = last_read(polled, partition) if read else self._last_read(self.topic_id, partition, starts)
                yield OffsetRange(self.topic_id, self.kafka.topic, partition, start, end, read, gaps=gaps, last=last)

    def _explain_refusal(self, starts: dict[int, int], error: Exception) -> KarmalakeError:
        """Return the error to raise for positions that a broker refused."""
        if losses := self._losses(lambda _, partition: starts.get(partition)):
            return LostRecordsError(_explain(losses))
        return TransientError(f"the log of {self.kafka.topic} changed during the read ({error}); start again")

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self.kafka.topic, partition)


def _extent(found: list[ConsumerRecord]) -> tuple[int, int]:
    """Return the numbers of records and bytes of record batches."""
    return sum(map(count, found)), sum(len(item.value or b"") for item in found)


def _explain(losses: list[_Loss]) -> str:
    places = (f"{loss.range.topic}-{loss.range.topic_partition}@{loss.range.start_offset}" for loss in losses)
    found = "; ".join(f"{place}: {loss.cause}" for place, loss in zip(places, losses, strict=True))
    return (
        f"{found}. Nothing was committed. If the records cannot be recovered, `karmalake drain --accept-loss` "
        "records the loss in the commits table and continues at the log's start (dedup makes that harmless)"
    )


def decode_batch(source: str, polled: Polled, ranges: tuple[OffsetRange, ...], contract: ContractSettings) -> Batch:
    """Decode polled records into a batch; unreadable record batches become rejected records.

    Raises what `decode` raises.
    """
    records, decoded = polled.records, decode(polled.records, contract)
    if len(polled.unreadable):
        records = pa.concat_tables([records, polled.unreadable.select(RECORD.names)])
        decoded = replace(decoded, rejected=pa.concat_tables([decoded.rejected, polled.unreadable]))
    return Batch(source, records, decoded, ranges)


@contextmanager
def open_source(settings: Settings, only: Collection[int] = ()) -> Generator[KafkaSource]:
    """Yield a source connected to the brokers; closing it commits nothing.

    With `only`, it reads these topic partitions and does not share them. Raises TransientError or ConfigurationError.
    """
    with translate_errors(settings.kafka, "connecting"), consumer(settings.kafka, **_options(settings)) as reader:
        install_raw_batches(reader)
        shared = settings.ingest.share_partitions and not only
        with (
            admin_client(settings.kafka) as admin,
            join_group(settings.kafka) if shared else nullcontext() as group,
        ):
            read = frozenset(only) or None
            yield KafkaSource(settings.kafka, settings.ingest, settings.contract, reader, admin, only=read, group=group)


@contextmanager
def open_unchecked_source(settings: Settings, partition: int) -> Generator[KafkaSource]:
    """Yield a source of one topic partition in which a record batch with a wrong checksum is a rejected record.

    Raises TransientError or ConfigurationError.
    """
    options = _options(settings) | {"check_crcs": False}
    with translate_errors(settings.kafka, "connecting"), consumer(settings.kafka, **options) as reader:
        install_unchecked_raw_batches(reader)
        with admin_client(settings.kafka) as admin:
            read = frozenset({partition})
            yield KafkaSource(settings.kafka, settings.ingest, settings.contract, reader, admin, only=read)


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "group_id": None,  # so that reading needs no permission on the group
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "max_partition_fetch_bytes": _FETCH_BYTES,
        # A fifth of a poll's wait: a poll leaves a fetch with the broker, which answers no other request on that
        # connection until the fetch ends.
        "fetch_max_wait_ms": int(settings.ingest.max_wait_seconds * 200),
        "kafka_client": in_place_client,
    }
