"""Kafka to columns: from the checkpoints of the lake to a batch of undecoded records.

Owns the consumer and its positions. Checkpoints belong to a topic *id*: a topic that was deleted and created again
under its old name is another topic, and is read from its start. Offsets are also committed to a consumer group, for
the tools that watch lag there; nothing ever reads them back.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pyarrow as pa
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    KafkaTimeoutError,
    NoError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.bus.clients import admin_client, consumer, translated
from pipelines.bus.records import DamagedBatchError, limit_polls
from pipelines.bus.topics import topic_id_of
from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.errors import KarmalakeError, LostRecordsError, TransientError, UsageError
from pipelines.ingest.batches import Polled, count, hand_over_batches, hand_over_damaged_batches, to_columns
from pipelines.ingest.guard import Halted
from pipelines.ingest.identity import LOG_TRUNCATION, find_overwritten, last_read, seek
from pipelines.ingest.ranges import Batch, Checkpoint, LastRead, OffsetRange
from pipelines.ingest.receive import receiving_in_place
from pipelines.ingest.share import Share, open_share
from pipelines.settings import ContractSettings, IngestSettings, KafkaSettings, Settings

_LOG = logging.getLogger(__name__)
_FETCH_BYTES = 4 * 1024 * 1024
"""Of one topic partition at a time; a record of any size is still read."""
_MOST_BATCHES = 64
"""Record batches that one poll returns at the most."""
_COORDINATOR_STARTS = (CoordinatorNotAvailableError, CoordinatorLoadInProgressError)
"""A cluster that never had a group makes the topic of offsets first; one that was restarted reads it first."""
_LOOKUP_MS = 3_000
_MORE_MS = 100
"""How long a batch that has records waits for the next ones that are known to lie behind."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """What a log no longer has: a range back to where it is read again, and what happened."""

    range: OffsetRange
    why: str


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
    acknowledging: bool = True
    only: frozenset[int] | None = None
    """The topic partitions that are read; None means all."""
    share: Share | None = None
    """Where several ingesters divide the topic partitions."""
    halted: dict[int, int] = field(default_factory=dict)
    """The offset of each topic partition that is not read on: until its checkpoint is elsewhere."""
    committed: Callable[[str, int], LastRead | None] = lambda _topic_id, _partition: None
    """What identifies the checkpoint of a topic partition, by what the lake holds."""
    lasts: dict[int, tuple[int, LastRead | None]] = field(default_factory=dict[int, tuple[int, LastRead | None]])
    """By topic partition: a position, and the last record before it."""
    told: set[str] = field(default_factory=set[str])
    """What was said of damaged batches: each is met again by every fetch."""

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Read from the checkpoints: a batch, or None when nothing came within `max_wait_seconds`.

        Raises LostRecordsError when records between a checkpoint and the log's start, or above the log's end, are
        gone, or when the last record before a checkpoint is another one by now; TransientError when the brokers do not
        answer, and when nothing is left to be read but a damaged batch in the way.
        """
        found = self.read(checkpoint)
        if found is None:
            return None
        return as_batch(f"kafka:{self.kafka.topic}", *found, self.contract)

    def read(self, checkpoint: Checkpoint) -> tuple[Polled, tuple[OffsetRange, ...]] | None:
        """Return what came and the offsets that it covers, as `poll` does, undecoded."""
        with translated(self.kafka, f"reading {self.kafka.topic}"):
            if self.share:
                self.only = self.share.assigned()
            topic_id, partitions = self._describe()
            starts, self.positions = self._starts(topic_id, partitions, checkpoint), {}  # until it is read: no gap
            try:
                polled = self._fetch(starts)
                ranges = tuple(self._ranges(starts, polled))
            except (OffsetOutOfRangeError, LOG_TRUNCATION) as error:
                raise self._loss_at(starts, error) from error
            if self._describe()[0] != topic_id:
                _LOG.warning("topic %s was deleted and created again while it was read", self.kafka.topic)
                return self.read(checkpoint)
        self.lasts |= {r.topic_partition: (r.next_offset, r.last) for r in ranges}
        self.positions = starts | {r.topic_partition: r.next_offset for r in ranges}
        return (polled, ranges) if ranges else None

    def halt(self, halted: Halted) -> None:
        """Read a topic partition no further, as long as its checkpoint stays where it is."""
        self.halted[halted.topic_partition] = halted.next_offset

    def following(self) -> Checkpoint:
        """Return the checkpoints behind what was polled last; of a topic created again since, none."""
        read_topic_id, positions = self.topic_id, dict(self.positions)
        return lambda topic_id, partition: positions.get(partition) if topic_id == read_topic_id else None

    def behind(self) -> int:
        """Return how many records lie between the positions and the ends of the topic partitions.

        The embedded broker understates it by up to one producer's batch.
        """
        read = {partition: at for partition, at in self.positions.items() if partition not in self.halted}
        with translated(self.kafka, f"looking for the end of {self.kafka.topic}"):
            ends = self._ask(self.consumer.end_offsets, list(map(self._place, read)))
        return sum(max(0, ends[self._place(partition)] - position) for partition, position in read.items())

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Commit the offsets to the consumer group: advisory, so a failure is only logged, once."""
        offsets = {self._place(r.topic_partition): OffsetAndMetadata(r.next_offset, "", -1) for r in ranges}
        group = self.kafka.group_id
        try:
            if self.acknowledging:
                with translated(self.kafka, f"committing the offsets of the group {group}"):
                    self._tell_the_group(offsets)
        except KarmalakeError as error:
            self.acknowledging = self.share is not None  # it may be that they were moved to somebody else
            missing = isinstance(error.__cause__, GroupAuthorizationFailedError)
            _LOG.warning(
                "group %s does not take offsets (%s)%s; the lake's checkpoints do, and nothing is lost by it",
                group, error, f": READ on the group {group} is missing among the ACLs" if missing else "",
            )  # fmt: skip

    def _tell_the_group(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit without being a member: what reads the topic needs no permission on the group."""
        if self.share:
            self.share.member.commit(offsets)
            return
        deadline = time.monotonic() + _LOOKUP_MS / 1000
        while True:
            try:
                told = self.admin.alter_group_offsets(self.kafka.group_id, offsets)
                break
            except _COORDINATOR_STARTS:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_MORE_MS / 1000)
        for error in filter(lambda error: error is not NoError, told.values()):
            raise error(f"group {self.kafka.group_id}")

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return a range for each topic partition whose log no longer reaches, or no longer is, what was read."""
        with translated(self.kafka, f"looking for the bounds of {self.kafka.topic}"):
            return tuple(loss.range for loss in self._losses(checkpoint))

    def _losses(self, checkpoint: Checkpoint) -> list[_Loss]:
        topic_id, partitions = self._describe()
        known = {partition: at for partition in partitions if (at := checkpoint(topic_id, partition)) is not None}
        return self._find_losses(topic_id, known)

    def _find_losses(self, topic_id: str, known: dict[int, int]) -> list[_Loss]:
        """Compare checkpoints with the logs."""
        places = list(map(self._place, known))
        begins = self._ask(self.consumer.beginning_offsets, places)
        ends = self._ask(self.consumer.end_offsets, places)
        whys: dict[int, str] = {}
        for place in places:
            at, begin = known[place.partition], begins[place]
            if at < begin:
                whys[place.partition] = f"retention removed {begin - at} records that were never read"
            elif at > ends[place]:
                whys[place.partition] = "the log ends before the checkpoint, so records were lost on the broker"
        whys |= self._find_overwritten(topic_id, {n: at for n, at in known.items() if n not in whys}, begins)
        return [
            _Loss(self._back_to(topic_id, n, known[n], begins[self._place(n)]), why) for n, why in sorted(whys.items())
        ]

    def _find_overwritten(self, topic_id: str, known: dict[int, int], begins: dict[Any, int]) -> dict[int, str]:
        """Return what is wrong with the logs whose last record before a position is another one by now."""
        lasts = {self._place(n): last for n in known if (last := self._last(topic_id, n, known))}
        compared = {place: last for place, last in lasts.items() if last.offset >= begins[place]}
        return {
            place.partition: f"the record at offset {compared[place].offset} is not the one that was read there "
            f"(leader epoch {compared[place].epoch}): the log lost its end and grew again, so records before the "
            "checkpoint may never have been read"
            for place in (find_overwritten(self.kafka, compared) if compared else ())
        }

    def _back_to(self, topic_id: str, partition: int, at: int, begin: int) -> OffsetRange:
        return OffsetRange(topic_id, self.kafka.topic, partition, at, begin, lost=max(0, begin - at))

    def _last(self, topic_id: str, partition: int, at: dict[int, int]) -> LastRead | None:
        """Return the last record before a position: of this source's own reading, else as the lake has it."""
        position, last = self.lasts.get(partition, (None, None))
        if topic_id != self.topic_id or position != at[partition]:
            last = self.committed(topic_id, partition)
            self.lasts[partition] = (at[partition], last)
        return last if last and last.offset < at[partition] else None

    def _ask(self, lookup: Callable[..., dict[Any, int]], places: list[TopicPartition]) -> dict[Any, int]:
        """Look up offsets; the client may miss who leads a topic partition and wait for ever, so it is asked again."""
        deadline = time.monotonic() + self.kafka.request_timeout_seconds
        while True:
            try:
                return lookup(places, timeout_ms=_LOOKUP_MS)
            except KafkaTimeoutError:
                if time.monotonic() > deadline:
                    raise

    def _describe(self) -> tuple[str, list[int]]:
        (topic,) = self.admin.describe_topics([self.kafka.topic])
        if topic["error_code"] == UnknownTopicOrPartitionError.errno:
            raise UsageError(
                f"topic {self.kafka.topic} does not exist on {self.kafka.bootstrap_servers}: "
                "create it with `karmalake topics ensure`"
            )
        if topic["error_code"]:
            raise for_code(topic["error_code"])(f"topic {self.kafka.topic}")
        partitions = {partition["partition_index"] for partition in topic["partitions"]}
        missing = frozenset[int]() if self.share else (self.only or frozenset()) - partitions
        if missing:
            raise UsageError(f"{self.kafka.topic} has no topic partition {min(missing)}: it has {len(partitions)}")
        return topic_id_of(self.kafka, topic), sorted(partitions if self.only is None else partitions & self.only)

    def _starts(self, topic_id: str, partitions: list[int], checkpoint: Checkpoint) -> dict[int, int]:
        """Return where to read from, having moved the consumer there."""
        known = {partition: checkpoint(topic_id, partition) for partition in partitions}
        self.halted = {
            n: at for n, at in self.halted.items() if topic_id == self.topic_id and known.get(n) in {at, None}
        }
        known = {partition: at for partition, at in known.items() if partition not in self.halted}
        partitions = list(known)
        if topic_id != self.topic_id or set(partitions) != set(self.positions):
            self.consumer.assign(list(map(self._place, partitions)))
            self.lasts = self.lasts if topic_id == self.topic_id else {}
            self.topic_id, self.positions = topic_id, {}
        unread = [self._place(partition) for partition, at in known.items() if at is None]
        begins = self._ask(self.consumer.beginning_offsets, unread) if unread else {}
        starts = {partition: begins[self._place(partition)] if at is None else at for partition, at in known.items()}
        moved = {partition: start for partition, start in starts.items() if self.positions.get(partition) != start}
        self._require_what_was_read(topic_id, {n: start for n, start in moved.items() if known[n] is not None})
        self.lasts |= {partition: (start, None) for partition, start in moved.items() if known[partition] is None}
        for partition, start in moved.items():
            last = self._last(topic_id, partition, starts)
            epoch = last.epoch if last and last.offset + 1 == start else -1
            seek(self.consumer, self._place(partition), start, epoch)
        return starts

    def _require_what_was_read(self, topic_id: str, known: dict[int, int]) -> None:
        """Raise LostRecordsError where the last record before a position is another one by now (`nothing-lost`).

        An offset alone would be read on from although the log lost its end and grew again.
        """
        places = [self._place(partition) for partition in known if self._last(topic_id, partition, known)]
        begins = self._ask(self.consumer.beginning_offsets, places) if places else {}
        known = {place.partition: known[place.partition] for place in places}
        if whys := self._find_overwritten(topic_id, known, begins):
            ranges = {n: self._back_to(topic_id, n, known[n], begins[self._place(n)]) for n in whys}
            raise LostRecordsError(_explain([_Loss(ranges[n], why) for n, why in sorted(whys.items())]))

    def _fetch(self, starts: dict[int, int]) -> Polled:
        """Poll until a batch is full, or all there is and lingered for; whole record batches, so by one too many."""
        polled: list[ConsumerRecord] = []
        damaged: dict[int, DamagedBatchError] = {}
        self.consumer.resume(*self.consumer.paused())  # another replica may lead by now
        size, wait_ms, room = 0, int(self.ingest.max_wait_seconds * 1000), self.ingest.max_batch_records
        lingering, deadline = None, time.monotonic() + _LOOKUP_MS / 1000
        while room > 0 and size < self.ingest.max_batch_bytes:
            limit_polls(self.consumer, self.ingest.max_batch_bytes - size, room)
            found = self._poll(wait_ms, damaged)
            if not found:
                if polled or self._is_answered(starts) or time.monotonic() > deadline:
                    break
                continue
            polled += found
            size += sum(len(item.value or b"") for item in found)
            room -= sum(map(count, found))
            lingering = lingering or time.monotonic() + self.ingest.linger_seconds
            left_ms = max(0, int((lingering - time.monotonic()) * 1000))
            wait_ms = left_ms if self._is_current(starts.keys() - damaged.keys()) else _MORE_MS
        if damaged and not polled and not self._is_more_behind(starts.keys() - damaged.keys()):
            raise next(iter(damaged.values()))
        return to_columns(polled, starts, self.topic_id)

    def _poll(self, wait_ms: int, damaged: dict[int, DamagedBatchError]) -> list[ConsumerRecord]:
        """Poll; a topic partition with a damaged batch next is noted and paused: the others go on."""
        while True:
            try:
                return list(chain.from_iterable(self.consumer.poll(wait_ms, max_records=_MOST_BATCHES).values()))
            except DamagedBatchError as error:
                self.consumer.pause(error.place)
                damaged[error.place.partition] = error
                if (said := str(error.args[0])) not in self.told:
                    self.told.add(said)
                    _LOG.warning("%s; its topic partition is not read on, the others are", said)

    def _is_more_behind(self, partitions: Collection[int]) -> bool:
        places = list(map(self._place, partitions))
        ends = self._ask(self.consumer.end_offsets, places) if places else {}
        return any(ends[place] > self.consumer.position(place) for place in places)

    def _is_answered(self, starts: dict[int, int]) -> bool:
        """Return whether each topic partition was answered once: not before is it known that its log has the start."""
        return all(self.consumer.highwater(self._place(partition)) is not None for partition in starts)

    def _is_current(self, partitions: Collection[int]) -> bool:
        """Return whether all that the brokers told of is read: batches are small when current, large when behind."""
        places = map(self._place, partitions)
        return all(self.consumer.position(place) >= (self.consumer.highwater(place) or 0) for place in places)

    def _ranges(self, starts: dict[int, int], polled: Polled) -> Iterator[OffsetRange]:
        for partition, start in starts.items():
            end = self.consumer.position(self._place(partition))
            if end > start:
                read = polled.count(partition)
                gaps = end - start - read
                last = last_read(polled, partition) if read else self._last(self.topic_id, partition, starts)
                yield OffsetRange(self.topic_id, self.kafka.topic, partition, start, end, read, gaps=gaps, last=last)

    def _loss_at(self, starts: dict[int, int], error: Exception) -> KarmalakeError:
        """Return what is to be raised for positions that a broker refused."""
        if losses := self._losses(lambda _, partition: starts.get(partition)):
            return LostRecordsError(_explain(losses))
        return TransientError(f"the log of {self.kafka.topic} changed while it was read ({error}); read it again")

    def _place(self, partition: int) -> TopicPartition:
        return TopicPartition(self.kafka.topic, partition)


def _explain(losses: list[_Loss]) -> str:
    places = (f"{loss.range.topic}-{loss.range.topic_partition}@{loss.range.start_offset}" for loss in losses)
    found = "; ".join(f"{place}: {loss.why}" for place, loss in zip(places, losses, strict=True))
    return (
        f"{found}. Nothing was committed. If the records are gone for good, `karmalake drain --accept-loss` "
        "writes the loss into the commits table and reads on from the log's start (dedup makes that harmless)"
    )


def as_batch(source: str, polled: Polled, ranges: tuple[OffsetRange, ...], contract: ContractSettings) -> Batch:
    """Decode what was polled; what no record could be made of is rejected with the rest.

    Raises what `decode` raises.
    """
    records, decoded = polled.records, decode(polled.records, contract)
    if len(polled.unread):
        records = pa.concat_tables([records, polled.unread.select(RECORD.names)])
        decoded = replace(decoded, rejected=pa.concat_tables([decoded.rejected, polled.unread]))
    return Batch(source, records, decoded, ranges)


@contextmanager
def open_source(settings: Settings, only: Collection[int] = ()) -> Generator[KafkaSource]:
    """Yield a source connected to the brokers; closing it commits nothing.

    With `only`, it reads these topic partitions, whoever reads the others. Raises TransientError or ConfigurationError
    with what to do.
    """
    with translated(settings.kafka, "connecting"), consumer(settings.kafka, **_options(settings)) as reader:
        hand_over_batches(reader)
        shared = settings.ingest.share_partitions and not only
        with (
            admin_client(settings.kafka) as admin,
            open_share(settings.kafka) if shared else nullcontext() as share,
        ):
            read = frozenset(only) or None
            yield KafkaSource(settings.kafka, settings.ingest, settings.contract, reader, admin, only=read, share=share)


@contextmanager
def open_damaged_source(settings: Settings, partition: int) -> Generator[KafkaSource]:
    """Yield a source of one topic partition that reads a record batch whose checksum is wrong as a rejected one.

    Raises TransientError or ConfigurationError with what to do.
    """
    options = _options(settings) | {"check_crcs": False}
    with translated(settings.kafka, "connecting"), consumer(settings.kafka, **options) as reader:
        hand_over_damaged_batches(reader)
        with admin_client(settings.kafka) as admin:
            read = frozenset({partition})
            yield KafkaSource(settings.kafka, settings.ingest, settings.contract, reader, admin, only=read)


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "group_id": None,  # offsets are committed for others: who may not is not kept from reading
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "max_partition_fetch_bytes": _FETCH_BYTES,
        # A fifth of a poll's wait: a poll leaves a fetch with the broker, which answers nothing else on that connection
        # until it is over.
        "fetch_max_wait_ms": int(settings.ingest.max_wait_seconds * 200),
        "kafka_client": receiving_in_place,
    }
