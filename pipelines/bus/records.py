"""Safe reading of record batches with kafka-python, whatever a producer sent.

kafka-python decompresses a batch without a limit, trusts its header, and lets an error in it end the consumer. So every
consumer of karmalake gets its own batch types through `install_batch_types`; `SafeBatch` reads records one by one. A
batch is all of its records, or, if any of them is invalid, a single record without a value at the batch's last offset.
Every reader sees it the same way and rejects it. A poll is bounded in bytes and records.

This module relies on a few private names of kafka-python 3.0; `is_client_supported` checks them, and so does a test.
"""
# pyright: reportAttributeAccessIssue=false
# (private names, and outdated stubs)

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

from pipelines.bus.inflate import MAX_DECOMPRESSED_BYTES, inflate
from pipelines.bus.legacy_messages import read_messages

_LOG = logging.getLogger(__name__)
_CLIENT = "kafka-python"
_MAGIC = 2
MAX_BATCH_RECORDS = 1_000_000
"""Records in one batch: each takes memory of its own."""
MAX_BATCH_HEADERS = 1_000_000
"""Headers in one batch, over all records."""
_POLL_BYTES = 32 * 1024 * 1024
_RECORD_BYTES = 512
"""Memory of a record object, in addition to key, value and headers."""
_MIN_RECORD_BYTES = 7
"""Length, attributes, time, offset, key, value and headers: a byte each."""
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
CHECKSUM_MISMATCH = "fails its checksum: bytes changed on disk or in transit"


def describe_incomplete_batch(count: int) -> str:
    """Return the problem of a batch whose bytes are not the `count` records that its header declares."""
    return f"does not hold the {count:,} complete records that its header declares"


class CheckedBatch(DefaultRecordBatch):
    """A batch whose header is validated before it is used."""

    __slots__ = ()

    @property
    def last_offset(self) -> int:
        """Return the last offset of the batch, never below the first: a reader would loop forever."""
        return self.base_offset + max(0, self.last_offset_delta)

    def open(self) -> str | None:
        """Decompress the batch in place; return the problem that makes it unreadable, or None."""
        if self.magic != _MAGIC:
            return f"has the unknown format {self.magic}"
        if not 0 <= self.records_count <= MAX_BATCH_RECORDS:
            return f"declares {self.records_count:,} records; at most {MAX_BATCH_RECORDS:,} are read"
        return self._decompress() or self._check_size()

    def _decompress(self) -> str | None:
        if self.compression_type == self.CODEC_NONE:
            return None
        try:
            inflated = inflate(self.compression_type, memoryview(self._buffer)[self._pos :])
        except ValueError as error:
            return f"cannot be decompressed: {error}"
        if inflated is None:
            return f"decompresses to more than {MAX_DECOMPRESSED_BYTES >> 20} MiB and was not decompressed"
        self._buffer, self._pos, self._decompressed = inflated, 0, True
        return None

    def _check_size(self) -> str | None:
        size = len(self._buffer) - self._pos
        if size > MAX_DECOMPRESSED_BYTES:
            return f"is larger than {MAX_DECOMPRESSED_BYTES >> 20} MiB"
        return describe_incomplete_batch(self.records_count) if self.records_count * _MIN_RECORD_BYTES > size else None


class SafeBatch(CheckedBatch):
    """A batch that is safe to iterate over record by record; if invalid, it is one record without a value."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(self._placeholder() if self.open() else list(self._records()))
        except (ValueError, IndexError):
            return iter(self._placeholder())

    def _placeholder(self) -> list[Any]:
        return [DefaultRecord(0, self.last_offset, self.max_timestamp, self.timestamp_type, None, None, [])]

    def _records(self) -> Iterator[Any]:
        """Yield the records. Raises ValueError or IndexError if one of them is invalid."""
        data, at, last, headers = self._buffer, self._pos, -1, 0
        max_delta = self.last_offset - self.base_offset
        log_append_time = self.timestamp_type == self.LOG_APPEND_TIME
        for _ in range(self.records_count):
            record = _read(data, at)
            headers += len(record.headers)
            if not last < record.offset_delta <= max_delta or headers > MAX_BATCH_HEADERS:
                raise ValueError("the records do not match the header")
            at, last = record.end, record.offset_delta
            time = self.max_timestamp if log_append_time else self.first_timestamp + record.time_delta
            yield DefaultRecord(
                at, self.base_offset + last, time, self.timestamp_type, record.key, record.value, record.headers
            )
        if at != len(data):
            raise ValueError("there are bytes after the last record")


class CrcCheckedBatch(SafeBatch):
    """A `SafeBatch` that checks its own CRC, for consumers with `check_crcs=False`; a mismatch makes it invalid."""

    __slots__ = ()

    def open(self) -> str | None:
        """Decompress the batch in place; return the problem that makes it unreadable, or None."""
        return super().open() if self.validate_crc() else CHECKSUM_MISMATCH


class _Record(NamedTuple):
    time_delta: int
    offset_delta: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    end: int


def _read(data: bytearray, at: int) -> _Record:
    """Return the record at position `at`, bounds checked by the same rules as ingest's compiled loop."""
    length, at = decode_varint(data, at)
    end = at + length
    if length < 1 or end > len(data):
        raise ValueError("a record extends beyond its batch")
    time_delta, at = decode_varint(data, at + 1)
    offset_delta, at = decode_varint(data, at)
    key, at = _read_bytes(data, at, end)
    value, at = _read_bytes(data, at, end)
    count, at = decode_varint(data, at)
    if not 0 <= count <= MAX_BATCH_HEADERS:
        raise ValueError("a record declares too many headers")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, at = _read_bytes(data, at, end)
        content, at = _read_bytes(data, at, end)
        if name is None:
            raise ValueError("a header has no key")
        headers.append((name.decode("utf-8", "replace"), content))
    if at != end or not _MIN_INT64 <= time_delta <= _MAX_INT64:
        raise ValueError("a record does not match its length")
    return _Record(time_delta, offset_delta, key, value, headers, end)


def _read_bytes(data: bytearray, at: int, end: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(data, at)
    if not -1 <= size <= end - at:
        raise ValueError("a field extends beyond its record")
    return (None, at) if size < 0 else (bytes(data[at : at + size]), at + size)


class CheckedMessageSet(LegacyRecordBatch):
    """A message, or a compressed set of messages, of format 0 or 1 (before Kafka 0.11)."""

    __slots__ = ()

    def messages(self) -> list[Any]:
        """Return the records. Raises ValueError for invalid or incomplete messages, and for a set that is too large."""
        found = read_messages(memoryview(self._buffer), self._magic, self._offset, MAX_BATCH_RECORDS)
        log_append_time = self.timestamp_type == self.LOG_APPEND_TIME
        return [
            DefaultRecord(0, at, self._timestamp if log_append_time else time, self.timestamp_type, key, value, [])
            for at, time, key, value in found
        ]


class SafeMessageSet(CheckedMessageSet):
    """A message set that is safe to iterate over; if invalid, it is one record without a value."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(self.messages())
        except ValueError:
            return iter([DefaultRecord(0, self._offset, -1, self.timestamp_type, None, None, [])])


class _ControlBatch(CheckedBatch):
    """A control batch. An invalid one is ignored: it marks no aborted transaction."""

    __slots__ = ()

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except Exception:  # noqa: BLE001 - whatever its bytes make the client raise
            return None


class DamagedBatchError(CorruptRecordError):
    """A record batch that was corrupted after the broker received it; `place` is its topic partition."""

    def __init__(self, message: str, place: TopicPartition) -> None:
        super().__init__(message)
        self.place = place


class TypedBatches:
    """The batches of a fetch response, with the batch types of `install_batch_types`."""

    def __init__(
        self,
        batches: Any,
        batch_type: type[DefaultRecordBatch],
        message_set_type: type[LegacyRecordBatch] = SafeMessageSet,
    ) -> None:
        self._batches, self._batch_type, self._message_set_type = batches, batch_type, message_set_type

    def next_batch(self) -> Any:
        """Return the next batch, or None after the last. Raises CorruptRecordError for bytes that are not a batch."""
        try:
            batch = self._batches.next_batch()
        except (struct.error, AssertionError, IndexError) as error:
            raise CorruptRecordError(f"invalid record batch: {error!r}") from error
        if isinstance(batch, DefaultRecordBatch):
            is_marker = batch.is_control_batch and batch.magic == _MAGIC  # the client's own condition
            batch.__class__ = _ControlBatch if is_marker else self._batch_type
            if not 0 <= batch.base_offset <= _MAX_INT64 - 2**32:
                raise CorruptRecordError(f"invalid base offset {batch.base_offset} of a record batch")
        elif batch is not None:
            batch.__class__ = self._message_set_type
        return batch


@dataclass(slots=True)
class PollBudget:
    """What a poll may still return, in bytes and records; the record or batch that exhausts it is returned whole."""

    bytes: int
    records: int

    def __bool__(self) -> bool:
        return self.bytes > 0 and self.records > 0

    def spend(self, polled: ConsumerRecord) -> None:
        """Subtract a record, or a whole batch as one item, whose value has a length and a `count`."""
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
    """A fetcher whose polls end when their budget is spent; records fetched beyond it wait for the next poll."""

    budget = PollBudget(_POLL_BYTES, MAX_BATCH_RECORDS)
    """Of one poll."""
    remaining = budget

    def fetched_records(self, *arguments: Any, **options: Any) -> Any:
        """Return fetched records, up to the budget of a poll."""
        self.remaining = replace(self.budget)
        return super().fetched_records(*arguments, **options)

    def _append(self, drained: Any, part: Any, max_records: int, update_offsets: bool) -> int:  # noqa: FBT001 - kafka-python's signature
        taken = super()._append(drained, part, max_records, update_offsets)
        return taken if self.remaining else max_records  # pretends to be complete, which ends the poll


class _BudgetedRecords:
    """The records of a topic partition while the poll has budget; the next poll continues with the rest."""

    def __init__(self, records: Iterator[ConsumerRecord], fetcher: BoundedFetcher) -> None:
        self._records, self._fetcher = records, fetcher

    def __iter__(self) -> Iterator[ConsumerRecord]:
        return self

    def __next__(self) -> ConsumerRecord:
        if not self._fetcher.remaining:
            raise StopIteration
        record = next(self._records)
        self._fetcher.remaining.spend(record)
        return record


def partition_batches(
    fetcher: Any, batch_type: type[DefaultRecordBatch], message_set_type: type[LegacyRecordBatch]
) -> type[Fetcher.PartitionRecords]:
    """Return the class of a fetched topic partition for `fetcher`; kafka-python's own checks stay in force."""

    class PartitionBatches(Fetcher.PartitionRecords):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.record_iterator = _BudgetedRecords(self.record_iterator, fetcher)

        def _unpack_records(self, tp: Any, records: Any, *deserializers: object) -> Iterator[ConsumerRecord]:
            try:
                yield from super()._unpack_records(
                    tp, TypedBatches(records, batch_type, message_set_type), *deserializers
                )
            except CorruptRecordError as error:
                where = f"{tp.topic}-{tp.partition}@{self.next_fetch_offset}"
                raise DamagedBatchError(f"{where}: {error}", tp) from error

        def take(self, n: int | None = None) -> list[ConsumerRecord]:
            try:
                return super().take(n)
            except Exception:
                self.drain()  # an iterator that raised yields nothing more; the client would retry it forever
                raise

    return PartitionBatches


def install_batch_types(
    consumer: Any, batch_type: type[DefaultRecordBatch], message_set_type: type[LegacyRecordBatch] = SafeMessageSet
) -> None:
    """Make a KafkaConsumer read batches as these types; log a warning if this kafka-python is not supported."""
    if not is_client_supported():
        _LOG.warning("kafka-python %s is not supported: records are read by its own decoder", version(_CLIENT))
        return
    fetcher = consumer._fetcher  # noqa: SLF001 - no public API
    fetcher.__class__ = BoundedFetcher
    fetcher.PartitionRecords = partition_batches(fetcher, batch_type, message_set_type)


def limit_polls(consumer: Any, max_bytes: int, max_records: int) -> None:
    """Limit each further poll, in decompressed bytes and records; a poll may exceed them by one record batch."""
    consumer._fetcher.budget = PollBudget(max_bytes, max_records)  # noqa: SLF001 - no public API


def is_client_supported() -> bool:
    """Return whether kafka-python has the private names used here, with the expected parameters."""
    partition = getattr(Fetcher, "PartitionRecords", None)
    return (
        _has_method(partition, "_unpack_records", "tp", "records", "key_deserializer", "value_deserializer")
        and _has_method(partition, "take", "n")
        and _has_method(partition, "drain")
        and _has_method(Fetcher, "_append", "drained", "part", "max_records", "update_offsets")
        and _has_method(Fetcher, "fetched_records", "max_records", "update_offsets")
        and {"_buffer", "_pos", "_decompressed"} <= set(DefaultRecordBatch.__slots__)
        and {"_buffer", "_magic", "_offset", "_timestamp"} <= set(LegacyRecordBatch.__slots__)
    )


def _has_method(owner: Any, name: str, *parameters: str) -> bool:
    method = getattr(owner, name, None)
    return method is not None and list(signature(method).parameters) == ["self", *parameters]
