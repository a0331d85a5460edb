"""Record batches to columns, without a Python loop over records.

kafka-python checks CRCs, drops control batches and aborted transactions, and then parses each batch into record
objects. This module replaces the last step only: `install_raw_batches` makes a consumer return one item per batch, and
`to_columns` finds keys, values, headers, times and offsets in its bytes with a compiled loop that checks every bound.
A batch whose bytes do not match its header, or that decompresses to too many bytes, is one rejected record with its
offset range. A client without the private names that this uses (`bus/records.py`) returns single records, which is
several times slower.
"""
# pyright: reportAttributeAccessIssue=false
# (private names, and stubs of an old kafka-python)

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from kafka.consumer.fetcher import ConsumerRecord

from pipelines.bus.inflate import CODECS
from pipelines.bus.records import (
    CHECKSUM_MISMATCH,
    MAX_BATCH_HEADERS,
    CheckedBatch,
    CheckedMessageSet,
    describe_incomplete_batch,
    install_batch_types,
)
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import HEADERS, RECORD, REJECTED
from pipelines.contract.times import bus_times
from pipelines.ingest.scan import (
    FIELD_COUNT,
    HEADER_COUNT,
    HEADERS_START,
    KEY_SIZE,
    KEY_START,
    OFFSET_DELTA,
    TIME_DELTA,
    VALUE_SIZE,
    VALUE_START,
    copy_slices,
    scan_headers,
    scan_records,
)

_GROUP_BYTES = 2**30
_MAX_SAVED_BYTES = 2**20
"""Bytes of an unreadable batch that its dead letter holds."""


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one batch, decompressed but not parsed; `data[start:]` holds `count` of them.

    With a `problem`, `data` holds the bytes as received.
    """

    data: bytes | bytearray
    start: int
    count: int
    base_offset: int
    first_bus_ms: int
    last_bus_ms: int
    log_append_time: bool
    codec: int
    problem: str | None = None

    def __len__(self) -> int:
        return len(self.data) - self.start


class _RawBatch(CheckedBatch):
    """A batch that yields a single record: its last offset, with the whole batch as the value."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        problem = self.open()
        batch = RecordBatch(
            self._buffer,
            self._pos,
            self.records_count,
            self.base_offset,
            self.first_timestamp,
            self.max_timestamp,
            log_append_time=self.timestamp_type == self.LOG_APPEND_TIME,
            codec=self.compression_type,
            problem=problem,
        )
        return iter((_BatchItem(self.last_offset, self.max_timestamp, self.timestamp_type, batch),))


class _UncheckedRawBatch(_RawBatch):
    """A batch of a consumer that does not check CRCs: a wrong CRC is a problem of the batch, not an error."""

    __slots__ = ()

    def open(self) -> str | None:
        """Decompress the batch in place; return the reason if its records cannot be read."""
        return super().open() if self.validate_crc() else CHECKSUM_MISMATCH


class _RawMessageSet(CheckedMessageSet):
    """A message set of an old format: yields its messages, or one item with the reason why they cannot be read."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(self.messages())
        except ValueError as error:
            data, codec = bytes(self._buffer), self.compression_type
            problem = f"of the format {self._magic} is not whole: {error}"
            batch = RecordBatch(data, 0, 1, self._offset, -1, -1, log_append_time=False, codec=codec, problem=problem)
            return iter((_BatchItem(self._offset, -1, 0, batch),))


@dataclass(frozen=True, slots=True)
class _BatchItem:
    """A whole batch in the shape of a kafka-python record; offset and time are those of its last record."""

    offset: int
    timestamp: int
    timestamp_type: int
    value: RecordBatch
    key: None = None
    headers: tuple[()] = ()
    checksum: None = None

    @property
    def size_in_bytes(self) -> int:
        return len(self.value)

    def validate_crc(self) -> bool:
        """Return True: the batch's own CRC covers all of its records, and was checked."""
        return True


def install_raw_batches(consumer: Any) -> None:
    """Make a KafkaConsumer's `poll` return one ConsumerRecord per batch, with a RecordBatch as value, if supported."""
    install_batch_types(consumer, _RawBatch, _RawMessageSet)


def install_unchecked_raw_batches(consumer: Any) -> None:
    """Install raw batches in a consumer that does not check CRCs: a batch with a wrong CRC has a `problem`."""
    install_batch_types(consumer, _UncheckedRawBatch, _RawMessageSet)


def count(polled: ConsumerRecord) -> int:
    """Return the number of records in one polled item."""
    return polled.value.count if isinstance(polled.value, RecordBatch) else 1


@dataclass(frozen=True, slots=True)
class Polled:
    """The result of a poll: records (RECORD columns), and unreadable record batches, a row each (REJECTED columns)."""

    records: pa.Table
    unreadable: pa.Table
    epochs: Mapping[int, int] = field(default_factory=dict[int, int])
    """The leader epoch of the last record batch, by topic partition."""

    def count(self, partition: int) -> int:
        """Return the number of rows of a topic partition."""
        partitions = (rows["topic_partition"].to_numpy() for rows in (self.records, self.unreadable))
        return sum(int(np.count_nonzero(numbers == partition)) for numbers in partitions)

    def before(self, ends: Mapping[int, int]) -> "Polled":
        """Return the rows before an end offset, given by topic partition."""
        return Polled(_before(self.records, ends), _before(self.unreadable, ends))


NO_RECORDS = Polled(RECORD.empty_table(), REJECTED.empty_table())


def _before(rows: pa.Table, ends: Mapping[int, int]) -> pa.Table:
    inside = np.ones(len(rows), bool)
    partitions, offsets = rows["topic_partition"].to_numpy(), rows["offset"].to_numpy()
    for partition, end in ends.items():
        inside &= (partitions != partition) | (offsets < end)
    return rows.filter(pa.array(inside))


def to_columns(polled: Sequence[ConsumerRecord], starts: dict[int, int], topic_id: str) -> Polled:
    """Return polled batches of one topic as columns, from `starts` (offset by topic partition) on, in order.

    A fetch may begin within a batch: records before the start are dropped. A batch whose bytes do not match its header
    is one row of `unreadable`, at its last offset; its other offsets count as gaps.
    """
    tables: list[pa.Table] = []
    unreadable = [_unreadable(item, item.value.problem, topic_id) for item in polled if _problem(item)]
    for are_batches, items in groupby((item for item in polled if not _problem(item)), _is_batch):
        for group in _groups(list(items)) if are_batches else ():
            table, broken = _columns(group, starts, topic_id)
            tables.append(table)
            unreadable += [_unreadable(item, describe_incomplete_batch(item.value.count), topic_id) for item in broken]
        if not are_batches:
            tables.append(_records(list(items), topic_id))
    return Polled(
        pa.concat_tables(tables or [RECORD.empty_table()]),
        pa.concat_tables([REJECTED.empty_table(), *unreadable]),
        {item.partition: -1 if item.leader_epoch is None else item.leader_epoch for item in polled},
    )


def _problem(item: ConsumerRecord) -> str | None:
    return item.value.problem if _is_batch(item) else None


def _is_batch(item: ConsumerRecord) -> bool:
    return isinstance(item.value, RecordBatch)


def _unreadable(item: ConsumerRecord, problem: str | None, topic_id: str) -> pa.Table:
    """Return an unreadable batch as one rejected record, with the first bytes of the batch as its value."""
    batch: RecordBatch = item.value
    detail = (
        f"The record batch at {item.topic}-{item.partition}, offsets {batch.base_offset:,} to {item.offset:,} "
        f"({batch.count:,} records by its header, {CODECS.get(batch.codec, 'unknown codec')}, {len(batch):,} bytes) "
        f"{problem}. The first {_MAX_SAVED_BYTES >> 20} MiB of its bytes are kept."
    )
    row = _records([item._replace(value=bytes(memoryview(batch.data)[batch.start :][:_MAX_SAVED_BYTES]))], topic_id)
    reason_and_detail = [pa.array([text], pa.string()) for text in (Reason.UNDECODABLE, detail)]
    return pa.table([*row.columns, *reason_and_detail], schema=REJECTED)


def _groups(items: list[ConsumerRecord]) -> Iterator[list[ConsumerRecord]]:
    """Split batches into groups whose concatenated bytes a 32-bit position can address."""
    ends = np.cumsum([len(item.value) for item in items])
    for _, group in groupby(zip(ends.tolist(), items, strict=True), lambda pair: pair[0] // _GROUP_BYTES):
        yield [item for _, item in group]


def _columns(
    items: list[ConsumerRecord], starts: dict[int, int], topic_id: str
) -> tuple[pa.Table, list[ConsumerRecord]]:
    """Return the records of batches as columns, and the batches whose bytes do not match their header."""
    batches: list[RecordBatch] = [item.value for item in items]
    data = _joined(batches)
    fields, valid = _scan(items, data)
    batch_of = np.repeat(np.arange(len(batches)), [batch.count for batch in batches])
    offsets = fields[OFFSET_DELTA] + np.array([batch.base_offset for batch in batches])[batch_of]
    selected = offsets >= np.array([starts[item.partition] for item in items])[batch_of]
    if not valid.all():
        selected &= valid[batch_of]
    if not selected.all():
        fields, offsets, batch_of = fields[:, selected], offsets[selected], batch_of[selected]
    rows = len(batch_of)
    columns = [
        pa.repeat(pa.scalar(topic_id), rows),
        pa.repeat(pa.scalar(items[0].topic), rows),
        pa.array(np.array([item.partition for item in items], np.int32)[batch_of]),
        pa.array(offsets),
        _bus_time(batches, batch_of, fields[TIME_DELTA]),
        _slices(data, fields[KEY_START], fields[KEY_SIZE]),
        _slices(data, fields[VALUE_START], fields[VALUE_SIZE]),
        _headers(data, fields[HEADERS_START], fields[HEADER_COUNT]),
    ]
    return pa.table(columns, schema=RECORD), [items[number] for number in np.flatnonzero(~valid)]


def _joined(batches: list[RecordBatch]) -> np.ndarray:
    """Return the concatenated bytes of batches, uint8 of shape (bytes,); a single batch, maybe large, is not copied."""
    parts = [memoryview(batch.data)[batch.start :] for batch in batches]
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)


def _scan(items: list[ConsumerRecord], data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scan the records of batches; return `fields` and `valid`, see `scan_records`."""
    sizes = np.array([len(item.value) for item in items])
    counts = np.array([item.value.count for item in items])
    lasts = np.array([item.offset - item.value.base_offset for item in items])
    fields, valid = np.empty((FIELD_COUNT, counts.sum()), np.int64), np.empty(len(items), bool)
    scan_records(data, sizes, counts, lasts, MAX_BATCH_HEADERS, fields, valid)
    return fields, valid


def _records(items: list[ConsumerRecord], topic_id: str) -> pa.Table:
    """Return single records as columns: of the formats before Kafka 0.11, or of a client without raw batches."""
    headers = [[{"key": key, "value": value} for key, value in item.headers or ()] for item in items]
    columns = [
        [topic_id] * len(items),
        [item.topic for item in items],
        [item.partition for item in items],
        [item.offset for item in items],
        bus_times([item.timestamp for item in items]),
        [item.key for item in items],
        [item.value for item in items],
        headers,
    ]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, RECORD.types, strict=True)], schema=RECORD)


def _bus_time(batches: list[RecordBatch], batch_of: np.ndarray, deltas: np.ndarray) -> pa.Array:
    """Return the time of each record: its batch's first time plus a delta, or the time that the broker set.

    `batch_of` (the number of a record's batch) and `deltas` (ms) are int64 arrays of shape (records,).
    """
    stamped = np.array([batch.log_append_time for batch in batches])
    base_ms = np.where(stamped, [batch.last_bus_ms for batch in batches], [batch.first_bus_ms for batch in batches])
    base_ms, deltas = base_ms[batch_of], np.where(stamped[batch_of], 0, deltas)
    bus_ms = base_ms + deltas
    wrapped = ((base_ms ^ bus_ms) & (deltas ^ bus_ms)) < 0  # int64 overflow: equal signs gave another sign
    return bus_times(np.where(wrapped, -1, bus_ms) if wrapped.any() else bus_ms)


def _slices(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> pa.Array:
    """Return data[start:start + size] for each row as a binary array; a negative size is null.

    `data` is uint8 of shape (bytes,), `starts` and `sizes` are int64 of shape (rows,).
    """
    present = np.maximum(sizes, 0)
    bounds = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(present, out=bounds[1:])
    joined = np.empty(bounds[-1], np.uint8)
    copy_slices(data, starts, present, joined)
    nulls = int(np.count_nonzero(sizes < 0))
    valid = pa.array(sizes >= 0).buffers()[1] if nulls else None
    buffers = [valid, pa.py_buffer(bounds), pa.py_buffer(joined)]
    return pa.Array.from_buffers(pa.binary(), len(sizes), buffers, nulls)


def _headers(data: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> pa.Array:
    """Return the headers of each record; `starts` and `counts` are int64 of shape (records,)."""
    bounds = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=bounds[1:])
    slices = np.empty((4, bounds[-1]), np.int64)
    scan_headers(data, starts, counts, slices)
    keys = _text(_slices(data, slices[0], slices[1]))
    entries = pa.StructArray.from_arrays([keys, _slices(data, slices[2], slices[3])], fields=list(HEADERS.value_type))
    return pa.ListArray.from_arrays(pa.array(bounds), entries, type=HEADERS)


def _text(keys: pa.Array) -> pa.Array:
    """Return header keys as text; bytes that are not UTF-8 become replacement characters (`not-blocked`)."""
    try:
        return keys.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([key.decode("utf-8", "replace") for key in keys.to_pylist()], pa.string())
