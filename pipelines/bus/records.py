"""Record batches as kafka-python reads them, unharmed by whatever a producer has put into them.

kafka-python decompresses a batch whole, however much that becomes, believes what its header says, and lets an error in
it end the consumer. So the batches of every consumer here are of another kind: `take_apart_as` puts it in its place,
and `Guarded` is the one that reads records one by one. A batch is whole records, or it is one record without a value,
at its last offset: that is no event, and every reader sees it the same way. What a poll brings is bounded in bytes.

It rests on a few private names of kafka-python 3.0, which a test watches.
"""
# pyright: reportAttributeAccessIssue=false
# (private names, and stubs of a kafka-python of years ago)

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from inspect import signature
from typing import Any, NamedTuple

from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import decode_varint
from kafka.structs import TopicPartition

from pipelines.bus.inflate import MOST_BYTES, inflate
from pipelines.bus.legacy_messages import read_messages

_LOG = logging.getLogger(__name__)
_CLIENT = "kafka-python"
_FORMAT = 2
MOST_RECORDS = 1_000_000
"""Of one batch: each takes memory of its own."""
MOST_HEADERS = 1_000_000
"""Of all records of one batch."""
_POLL_BYTES = 32 * 1024 * 1024
_RECORD_BYTES = 512
"""What a record takes as an object, beside its key and value."""
_LEAST_RECORD_BYTES = 7
"""Length, attributes, time, offset, key, value and headers: a byte each."""
_LEAST_INT64, _MOST_INT64 = -(2**63), 2**63 - 1


CHANGED = "fails its checksum: bytes changed on the disk or on the way"


def not_whole(count: int) -> str:
    """Return what is wrong with a batch whose bytes are not the records that its header names."""
    return f"does not hold the {count:,} whole records that it names"


class Checked(DefaultRecordBatch):
    """A batch whose header is not believed."""

    __slots__ = ()

    @property
    def last_offset(self) -> int:
        """Return the last offset of the batch, never one before the first: a reader would go back for ever."""
        return self.base_offset + max(0, self.last_offset_delta)

    def open(self) -> str | None:
        """Decompress the batch in its place; return why its records cannot be read, None where they may be there."""
        if self.magic != _FORMAT:
            return f"is of the unknown format {self.magic}"
        if not 0 <= self.records_count <= MOST_RECORDS:
            return f"names {self.records_count:,} records, and {MOST_RECORDS:,} are the most"
        return self._inflate() or self._judge_size()

    def _inflate(self) -> str | None:
        if self.compression_type == self.CODEC_NONE:
            return None
        try:
            inflated = inflate(self.compression_type, memoryview(self._buffer)[self._pos :])
        except ValueError as error:
            return f"cannot be decompressed: {error}"
        if inflated is None:
            return f"becomes more than {MOST_BYTES >> 20} MiB and was not decompressed"
        self._buffer, self._pos, self._decompressed = inflated, 0, True
        return None

    def _judge_size(self) -> str | None:
        size = len(self._buffer) - self._pos
        if size > MOST_BYTES:
            return f"is more than {MOST_BYTES >> 20} MiB"
        return not_whole(self.records_count) if self.records_count * _LEAST_RECORD_BYTES > size else None


class Guarded(Checked):
    """A batch that may be iterated over, record by record, whatever is in it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(self._unread() if self.open() else list(self._records()))
        except (ValueError, IndexError):
            return iter(self._unread())

    def _unread(self) -> list[Any]:
        return [DefaultRecord(0, self.last_offset, self.max_timestamp, self.timestamp_type, None, None, [])]

    def _records(self) -> Iterator[Any]:
        """Yield whole records. Raises ValueError or IndexError for bytes that are not."""
        data, at, last, headers = self._buffer, self._pos, -1, 0
        most = self.last_offset - self.base_offset
        stamped = self.timestamp_type == self.LOG_APPEND_TIME
        for _ in range(self.records_count):
            record = _read(data, at)
            headers += len(record.headers)
            if not last < record.offset_delta <= most or headers > MOST_HEADERS:
                raise ValueError("not the records that the header names")
            at, last = record.end, record.offset_delta
            time = self.max_timestamp if stamped else self.first_timestamp + record.time_delta
            yield DefaultRecord(
                at, self.base_offset + last, time, self.timestamp_type, record.key, record.value, record.headers
            )
        if at != len(data):
            raise ValueError("bytes behind the last record")


class Salvaged(Guarded):
    """A batch of a consumer that does not check CRCs: one whose bytes changed is one record without a value, too."""

    __slots__ = ()

    def open(self) -> str | None:
        """Decompress the batch in its place; return why its records cannot be read."""
        return super().open() if self.validate_crc() else CHANGED


class _Record(NamedTuple):
    time_delta: int
    offset_delta: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    end: int


def _read(data: bytearray, at: int) -> _Record:
    """Return the record at a place, its bounds checked: by the same rules as the compiled loop of ingest."""
    length, at = decode_varint(data, at)
    end = at + length
    if length < 1 or end > len(data):
        raise ValueError("a record is not within its batch")
    time_delta, at = decode_varint(data, at + 1)
    offset_delta, at = decode_varint(data, at)
    key, at = _bytes(data, at, end)
    value, at = _bytes(data, at, end)
    count, at = decode_varint(data, at)
    if not 0 <= count <= MOST_HEADERS:
        raise ValueError("a record names too many headers")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, at = _bytes(data, at, end)
        content, at = _bytes(data, at, end)
        if name is None:
            raise ValueError("a header has no key")
        headers.append((name.decode("utf-8", "replace"), content))
    if at != end or not _LEAST_INT64 <= time_delta <= _MOST_INT64:
        raise ValueError("a record is not what its length says")
    return _Record(time_delta, offset_delta, key, value, headers, end)


def _bytes(data: bytearray, at: int, end: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(data, at)
    if not -1 <= size <= end - at:
        raise ValueError("a field is not within its record")
    return (None, at) if size < 0 else (bytes(data[at : at + size]), at + size)


class CheckedSet(LegacyRecordBatch):
    """A message, or a compressed set of messages, of the formats before Kafka 0.11."""

    __slots__ = ()

    def messages(self) -> list[Any]:
        """Return its records. Raises ValueError for bytes that are not whole messages, or become too much."""
        found = read_messages(memoryview(self._buffer), self._magic, self._offset, MOST_RECORDS)
        stamped = self.timestamp_type == self.LOG_APPEND_TIME
        return [
            DefaultRecord(0, at, self._timestamp if stamped else time, self.timestamp_type, key, value, [])
            for at, time, key, value in found
        ]


class GuardedSet(CheckedSet):
    """One that may be iterated over, whatever is in it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(self.messages())
        except ValueError:
            return iter([DefaultRecord(0, self._offset, -1, self.timestamp_type, None, None, [])])


class _Control(Checked):
    """A control batch: what cannot be read is no marker of an aborted transaction."""

    __slots__ = ()

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except Exception:  # noqa: BLE001 - whatever its bytes make the client raise
            return None


class DamagedBatchError(CorruptRecordError):
    """A record batch whose bytes are not what the broker was given; `place` says of which topic partition."""

    def __init__(self, sentence: str, place: TopicPartition) -> None:
        super().__init__(sentence)
        self.place = place


class BatchesAs:
    """The batches of a fetch on their way to the client, those of records as other kinds."""

    def __init__(
        self, batches: Any, kind: type[DefaultRecordBatch], message_set: type[LegacyRecordBatch] = GuardedSet
    ) -> None:
        self._batches, self._kind, self._set = batches, kind, message_set

    def next_batch(self) -> Any:
        """Return the next batch, or None behind the last. Raises CorruptRecordError for bytes that are none."""
        try:
            batch = self._batches.next_batch()
        except (struct.error, AssertionError, IndexError) as error:
            raise CorruptRecordError(f"no record batch: {error!r}") from error
        if isinstance(batch, DefaultRecordBatch):
            is_marker = batch.is_control_batch and batch.magic == _FORMAT  # as the client judges it
            batch.__class__ = _Control if is_marker else self._kind
            if not 0 <= batch.base_offset <= _MOST_INT64 - 2**32:
                raise CorruptRecordError(f"no record batch begins at the offset {batch.base_offset}")
        elif batch is not None:
            batch.__class__ = self._set
        return batch


@dataclass(slots=True)
class Room:
    """What a poll may still bring; the record, or the record batch, that uses it up is brought whole."""

    bytes: int
    records: int

    def __bool__(self) -> bool:
        return self.bytes > 0 and self.records > 0

    def use(self, polled: ConsumerRecord) -> None:
        """Count a record, or what `take_apart_as` made of a batch: it has a length and a `count`."""
        sizes = polled.serialized_key_size, polled.serialized_value_size, polled.serialized_header_size
        size = sum(max(0, size) for size in sizes)
        batched: Any = polled.value
        if isinstance(batched, bytes | None):
            size, records = size + _RECORD_BYTES, 1
        else:
            records = batched.count
        self.bytes -= size
        self.records -= records


class BoundedFetcher(Fetcher):
    """A fetcher whose polls end when their room is used up; what is fetched beyond it is for the next."""

    room = Room(_POLL_BYTES, MOST_RECORDS)
    """Of one poll."""
    left = room

    def fetched_records(self, *arguments: Any, **options: Any) -> Any:
        """Return what is there, up to the room of a poll."""
        self.left = replace(self.room)
        return super().fetched_records(*arguments, **options)

    def _append(self, drained: Any, part: Any, max_records: int, update_offsets: bool) -> int:  # noqa: FBT001 - theirs
        taken = super()._append(drained, part, max_records, update_offsets)
        return taken if self.left else max_records  # all that was asked for: that ends the poll


class _WithinRoom:
    """The records of a topic partition, as long as there is room in the poll; the next poll goes on with them."""

    def __init__(self, records: Iterator[ConsumerRecord], fetcher: BoundedFetcher) -> None:
        self._records, self._fetcher = records, fetcher

    def __iter__(self) -> Iterator[ConsumerRecord]:
        return self

    def __next__(self) -> ConsumerRecord:
        if not self._fetcher.left:
            raise StopIteration
        record = next(self._records)
        self._fetcher.left.use(record)
        return record


def partition_batches(
    fetcher: Any, kind: type[DefaultRecordBatch], message_set: type[LegacyRecordBatch]
) -> type[Fetcher.PartitionRecords]:
    """Return what a fetcher makes of a fetched topic partition: the checks are kafka-python's own."""

    class PartitionBatches(Fetcher.PartitionRecords):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.record_iterator = _WithinRoom(self.record_iterator, fetcher)

        def _unpack_records(self, tp: Any, records: Any, *deserializers: object) -> Iterator[ConsumerRecord]:
            try:
                yield from super()._unpack_records(tp, BatchesAs(records, kind, message_set), *deserializers)
            except CorruptRecordError as error:
                where = f"{tp.topic}-{tp.partition}@{self.next_fetch_offset}"
                raise DamagedBatchError(f"{where}: {error}", tp) from error

        def take(self, n: int | None = None) -> list[ConsumerRecord]:
            try:
                return super().take(n)
            except Exception:
                self.drain()  # what has raised yields nothing more, and the client would ask it again and again
                raise

    return PartitionBatches


def take_apart_as(
    consumer: Any, kind: type[DefaultRecordBatch], message_set: type[LegacyRecordBatch] = GuardedSet
) -> None:
    """Make a KafkaConsumer take the batches that it fetches apart as these do, if it can: else it is logged."""
    if not knows_the_client():
        _LOG.warning("kafka-python %s has its record batches elsewhere: records are read one by one", version(_CLIENT))
        return
    fetcher = consumer._fetcher  # noqa: SLF001 - there is no public way
    fetcher.__class__ = BoundedFetcher
    fetcher.PartitionRecords = partition_batches(fetcher, kind, message_set)


def limit_polls(consumer: Any, most_bytes: int, most_records: int) -> None:
    """Bound what each poll from now on brings: what is decompressed is counted, and one record batch comes on top."""
    consumer._fetcher.room = Room(most_bytes, most_records)  # noqa: SLF001 - there is no public way


def knows_the_client() -> bool:
    """Return whether the private names that batches are got by are there, with the parameters that they had."""
    partition = getattr(Fetcher, "PartitionRecords", None)
    return (
        _takes(partition, "_unpack_records", "tp", "records", "key_deserializer", "value_deserializer")
        and _takes(partition, "take", "n")
        and _takes(partition, "drain")
        and _takes(Fetcher, "_append", "drained", "part", "max_records", "update_offsets")
        and _takes(Fetcher, "fetched_records", "max_records", "update_offsets")
        and {"_buffer", "_pos", "_decompressed"} <= set(DefaultRecordBatch.__slots__)
        and {"_buffer", "_magic", "_offset", "_timestamp"} <= set(LegacyRecordBatch.__slots__)
    )


def _takes(owner: Any, name: str, *parameters: str) -> bool:
    method = getattr(owner, name, None)
    return method is not None and list(signature(method).parameters) == ["self", *parameters]
