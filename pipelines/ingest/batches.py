"""Whole record batches instead of record objects: how a poll becomes columns without a Python loop over records.

kafka-python checks CRCs, leaves out control batches and aborted transactions, and then takes each batch apart into
objects. Here only that last step is replaced: `hand_over_batches` makes a consumer yield one item a batch, and
`to_columns` finds keys, values, headers, times and offsets in its bytes with a compiled loop that checks every bound.
It rests on a few private names of kafka-python 3.0, which a test watches; the version is pinned for their sake.
"""
# pyright: reportAttributeAccessIssue=false
# (private names, and stubs of a kafka-python of years ago)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

from pipelines.contract.schema import HEADERS, RECORD, TIMESTAMP
from pipelines.ingest.scan import copy_slices, scan_headers, scan_records


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one batch, decompressed but not taken apart; `data[start:]` holds `count` of them."""

    data: bytearray
    start: int
    count: int
    base_offset: int
    first_bus_ms: int
    last_bus_ms: int
    log_append_time: bool

    def __len__(self) -> int:
        return len(self.data) - self.start


class _Undivided(DefaultRecordBatch):
    """A batch that is iterated over as a single record, the last one, whose value is the whole batch."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        self._maybe_uncompress()
        whole = RecordBatch(
            self._buffer,
            self._pos,
            self.records_count,
            self.base_offset,
            self.first_timestamp,
            self.max_timestamp,
            log_append_time=self.timestamp_type == self.LOG_APPEND_TIME,
        )
        return iter((_Last(self.last_offset, self.max_timestamp, self.timestamp_type, whole),))


@dataclass(frozen=True, slots=True)
class _Last:
    """What kafka-python needs to know of a record, of the last one of a batch."""

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


class _UndividedRecords:
    """The batches of a fetch, made undivided on their way; the old formats 0 and 1 stay what they are."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if isinstance(batch, DefaultRecordBatch) and not batch.is_control_batch:
            batch.__class__ = _Undivided
        return batch


class _PartitionBatches(Fetcher.PartitionRecords):
    """A fetched topic partition, batch by batch: the checks are kafka-python's own."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: object) -> Iterator[ConsumerRecord]:
        return super()._unpack_records(tp, _UndividedRecords(records), *deserializers)


def hand_over_batches(consumer: Any) -> None:
    """Make a KafkaConsumer's `poll` return a ConsumerRecord a batch, whose value is a RecordBatch."""
    consumer._fetcher.PartitionRecords = _PartitionBatches  # noqa: SLF001 - there is no public way


def count(polled: ConsumerRecord) -> int:
    """Return how many records one polled item stands for."""
    return polled.value.count if isinstance(polled.value, RecordBatch) else 1


def to_columns(polled: Sequence[ConsumerRecord], starts: dict[int, int], topic_id: str, now_ms: int) -> pa.Table:
    """Return polled batches as RECORD columns, from `starts` (offset by topic partition) on, in their order.

    A fetch may begin in the midst of a batch: records before the start are left out. A record without a time gets
    `now_ms`. Raises CorruptRecordError for bytes that are not whole records.
    """
    tables = [_columns(item, starts[item.partition], topic_id, now_ms) for item in polled]
    return pa.concat_tables([RECORD.empty_table(), *tables])


def _columns(item: ConsumerRecord, start: int, topic_id: str, now_ms: int) -> pa.Table:
    batch = item.value
    if not isinstance(batch, RecordBatch):
        return _single(item, topic_id, now_ms)
    data = np.frombuffer(batch.data, np.uint8)
    fields = np.empty((_FIELDS, min(batch.count, len(data))), np.int64)
    if batch.count > len(data) or scan_records(data, batch.start, fields) != len(data):
        place = f"{item.topic}-{item.partition}@{batch.base_offset}"
        raise CorruptRecordError(f"the batch at {place} does not hold the {batch.count} whole records that it names")
    fields[_OFFSET] += batch.base_offset
    fields = fields[:, fields[_OFFSET] >= start]
    rows = fields.shape[1]
    columns = [
        pa.repeat(pa.scalar(topic_id), rows),
        pa.repeat(pa.scalar(item.topic), rows),
        pa.repeat(pa.scalar(item.partition, pa.int32()), rows),
        pa.array(fields[_OFFSET]),
        _bus_time(batch, fields[_TIME], now_ms),
        _slices(data, fields[_KEY], fields[_KEY_SIZE]),
        _slices(data, fields[_VALUE], fields[_VALUE_SIZE]),
        _headers(data, fields[_HEADERS], fields[_HEADER_COUNT]),
    ]
    return pa.table(columns, schema=RECORD)


def _single(item: ConsumerRecord, topic_id: str, now_ms: int) -> pa.Table:
    """Return a record of the formats before Kafka 0.11 as a row."""
    bus_ms = now_ms if item.timestamp < 0 else item.timestamp
    values = (topic_id, item.topic, item.partition, item.offset, bus_ms * 1000, item.key, item.value, [])
    return pa.table([pa.array([value], kind) for value, kind in zip(values, RECORD.types, strict=True)], schema=RECORD)


_FIELDS = 8
_OFFSET, _TIME, _KEY, _KEY_SIZE, _VALUE, _VALUE_SIZE, _HEADERS, _HEADER_COUNT = range(_FIELDS)


def _bus_time(batch: RecordBatch, deltas: np.ndarray, now_ms: int) -> pa.Array:
    bus_ms = np.full_like(deltas, batch.last_bus_ms) if batch.log_append_time else deltas + batch.first_bus_ms
    return pa.array(np.where(bus_ms < 0, now_ms, bus_ms) * 1000).cast(TIMESTAMP)


def _slices(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> pa.Array:
    """Return data[start:start + size] for each row as a binary array; a negative size is null."""
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
    bounds = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=bounds[1:])
    slices = np.empty((4, bounds[-1]), np.int64)
    scan_headers(data, starts, counts, slices)
    keys = _text(_slices(data, slices[0], slices[1]))
    entries = pa.StructArray.from_arrays([keys, _slices(data, slices[2], slices[3])], fields=list(HEADERS.value_type))
    return pa.ListArray.from_arrays(pa.array(bounds), entries, type=HEADERS)


def _text(keys: pa.Array) -> pa.Array:
    """Return header keys as text; what is not UTF-8 is shown as far as it can be (`not-blocked`)."""
    try:
        return keys.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([key.decode("utf-8", "replace") for key in keys.to_pylist()], pa.string())
