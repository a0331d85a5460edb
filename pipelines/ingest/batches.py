"""Whole record batches instead of record objects: how a poll becomes columns without a Python loop over records.

kafka-python checks CRCs, leaves out control batches and aborted transactions, and then takes each batch apart into
objects. Here only that last step is replaced: `hand_over_batches` makes a consumer yield one item a batch, and
`to_columns` finds keys, values, headers, times and offsets in its bytes with a compiled loop that checks every bound.
A client without the private names that this rests on (`emit/records.py`) hands over records one by one, several times
slower.
"""
# pyright: reportAttributeAccessIssue=false
# (private names, and stubs of a kafka-python of years ago)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

from pipelines.contract.schema import HEADERS, RECORD, TIMESTAMP
from pipelines.emit.inflate import MOST_BYTES
from pipelines.emit.records import decompress, take_apart_as
from pipelines.ingest.scan import copy_slices, scan_headers, scan_records


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one batch, decompressed but not taken apart; `data[start:]` holds `count` of them.

    Of a batch that is not `inflated`, because it would be too large, it holds the compressed bytes.
    """

    data: bytearray
    start: int
    count: int
    base_offset: int
    first_bus_ms: int
    last_bus_ms: int
    log_append_time: bool
    inflated: bool = True

    def __len__(self) -> int:
        return len(self.data) - self.start


class _Undivided(DefaultRecordBatch):
    """A batch that is iterated over as a single record, the last one, whose value is the whole batch."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        inflated = decompress(self)
        whole = RecordBatch(
            self._buffer,
            self._pos,
            self.records_count,
            self.base_offset,
            self.first_timestamp,
            self.max_timestamp,
            log_append_time=self.timestamp_type == self.LOG_APPEND_TIME,
            inflated=inflated,
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


def hand_over_batches(consumer: Any) -> None:
    """Make a KafkaConsumer's `poll` return a ConsumerRecord a batch, whose value is a RecordBatch, if it can."""
    take_apart_as(consumer, _Undivided)


def count(polled: ConsumerRecord) -> int:
    """Return how many records one polled item stands for."""
    return polled.value.count if isinstance(polled.value, RecordBatch) else 1


def to_columns(polled: Sequence[ConsumerRecord], starts: dict[int, int], topic_id: str, now_ms: int) -> pa.Table:
    """Return polled batches of one topic as RECORD columns, from `starts` (offset by topic partition) on, in order.

    A fetch may begin in the midst of a batch: records before the start are left out. A record without a time gets
    `now_ms`. Raises CorruptRecordError for bytes that are not whole records.
    """
    tables: list[pa.Table] = []
    for kind, items in groupby(polled, _kind):
        if kind is _Kind.WHOLE:
            tables += [_columns(group, starts, topic_id, now_ms) for group in _groups(list(items))]
        elif kind is _Kind.TOO_LARGE:
            tables += [_records(_unread(item, starts), topic_id, now_ms) for item in items]
        else:
            tables.append(_records(list(items), topic_id, now_ms))
    return pa.concat_tables(tables or [RECORD.empty_table()])


class _Kind(Enum):
    WHOLE = auto()
    TOO_LARGE = auto()
    RECORD = auto()


def _kind(item: ConsumerRecord) -> _Kind:
    if not isinstance(item.value, RecordBatch):
        return _Kind.RECORD
    return _Kind.WHOLE if item.value.inflated else _Kind.TOO_LARGE


def _unread(item: ConsumerRecord, starts: dict[int, int]) -> list[ConsumerRecord]:
    """Return a record for each offset of a batch that is too large to be read: no event, but accounted for.

    The first holds the compressed bytes, for whoever wants to look into them, and all say what they are.
    """
    batch: RecordBatch = item.value
    if batch.count > _MOST_UNREAD or item.offset - batch.base_offset >= batch.count:
        raise CorruptRecordError(f"the batch at {item.topic}-{item.partition}@{batch.base_offset} is too large to read")
    why = [("karmalake", f"a record batch of more than {MOST_BYTES >> 20} MiB was not decompressed".encode())]
    whole = bytes(memoryview(batch.data)[batch.start :])
    return [
        item._replace(offset=offset, key=None, value=b"" if offset > batch.base_offset else whole, headers=why)
        for offset in range(batch.base_offset, item.offset + 1)
        if offset >= starts[item.partition]
    ]


def _groups(items: list[ConsumerRecord]) -> Iterator[list[ConsumerRecord]]:
    """Cut batches into groups whose bytes a 32-bit position can tell apart, one behind the other."""
    ends = np.cumsum([len(item.value) for item in items])
    for _, group in groupby(zip(ends.tolist(), items, strict=True), lambda pair: pair[0] // _GROUP_BYTES):
        yield [item for _, item in group]


def _columns(items: list[ConsumerRecord], starts: dict[int, int], topic_id: str, now_ms: int) -> pa.Table:
    batches: list[RecordBatch] = [item.value for item in items]
    data = np.frombuffer(b"".join(memoryview(batch.data)[batch.start :] for batch in batches), np.uint8)
    fields = _scan(items, data)
    batch_of = np.repeat(np.arange(len(batches)), [batch.count for batch in batches])
    fields[_OFFSET] += np.array([batch.base_offset for batch in batches])[batch_of]
    wanted = fields[_OFFSET] >= np.array([starts[item.partition] for item in items])[batch_of]
    if not wanted.all():
        fields, batch_of = fields[:, wanted], batch_of[wanted]
    rows = len(batch_of)
    columns = [
        pa.repeat(pa.scalar(topic_id), rows),
        pa.repeat(pa.scalar(items[0].topic), rows),
        pa.array(np.array([item.partition for item in items], np.int32)[batch_of]),
        pa.array(fields[_OFFSET]),
        _bus_time(batches, batch_of, fields[_TIME], now_ms),
        _slices(data, fields[_KEY], fields[_KEY_SIZE]),
        _slices(data, fields[_VALUE], fields[_VALUE_SIZE]),
        _headers(data, fields[_HEADERS], fields[_HEADER_COUNT]),
    ]
    return pa.table(columns, schema=RECORD)


def _scan(items: list[ConsumerRecord], data: np.ndarray) -> np.ndarray:
    """Return where each field of each record stands in `data`, the bytes of all batches one behind the other."""
    sizes = np.array([len(item.value) for item in items])
    counts = np.array([item.value.count for item in items])
    broken = np.flatnonzero(counts > sizes)  # told apart before memory is set aside for them
    fields = np.empty((_FIELDS, 0 if len(broken) else counts.sum()), np.int64)
    first = int(broken[0]) if len(broken) else scan_records(data, sizes, counts, fields)
    if first < len(items):
        batch = items[first].value
        place = f"{items[first].topic}-{items[first].partition}@{batch.base_offset}"
        raise CorruptRecordError(f"the batch at {place} does not hold the {batch.count} whole records that it names")
    return fields


def _records(items: list[ConsumerRecord], topic_id: str, now_ms: int) -> pa.Table:
    """Return records that came one by one: those of the formats before Kafka 0.11, or of a client without batches."""
    times = [1000 * (now_ms if item.timestamp < 0 else item.timestamp) for item in items]
    headers = [[{"key": key, "value": value} for key, value in item.headers or ()] for item in items]
    columns = [
        [topic_id] * len(items),
        [item.topic for item in items],
        [item.partition for item in items],
        [item.offset for item in items],
        times,
        [item.key for item in items],
        [item.value for item in items],
        headers,
    ]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, RECORD.types, strict=True)], schema=RECORD)


_GROUP_BYTES = 2**30
_MOST_UNREAD = 1_000_000
_FIELDS = 8
_OFFSET, _TIME, _KEY, _KEY_SIZE, _VALUE, _VALUE_SIZE, _HEADERS, _HEADER_COUNT = range(_FIELDS)


def _bus_time(batches: list[RecordBatch], batch_of: np.ndarray, deltas: np.ndarray, now_ms: int) -> pa.Array:
    stamped = np.array([batch.log_append_time for batch in batches])
    base_ms = np.where(stamped, [batch.last_bus_ms for batch in batches], [batch.first_bus_ms for batch in batches])
    bus_ms = base_ms[batch_of] + np.where(stamped[batch_of], 0, deltas)
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
