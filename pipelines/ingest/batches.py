"""Whole record batches instead of record objects: how a poll becomes columns without a Python loop over records.

kafka-python checks CRCs, leaves out control batches and aborted transactions, and then takes each batch apart into
objects. Here only that last step is replaced: `hand_over_batches` makes a consumer yield one item a batch, and
`to_columns` finds keys, values, headers, times and offsets in its bytes with a compiled loop that checks every bound.
A batch whose bytes are not the records that it names, or become too many, is one rejected record, with its range.
A client without the private names that this rests on (`bus/records.py`) hands over records one by one, several times
slower.
"""
# pyright: reportAttributeAccessIssue=false
# (private names, and stubs of a kafka-python of years ago)

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from kafka.consumer.fetcher import ConsumerRecord

from pipelines.bus.inflate import CODECS
from pipelines.bus.records import CHANGED, MOST_HEADERS, Checked, CheckedSet, not_whole, take_apart_as
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import HEADERS, RECORD, REJECTED
from pipelines.contract.times import bus_times
from pipelines.ingest.scan import copy_slices, scan_headers, scan_records


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one batch, decompressed but not taken apart; `data[start:]` holds `count` of them.

    Of a batch with a `problem` it holds the bytes as they came.
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


class _Undivided(Checked):
    """A batch that is iterated over as a single record, the last one, whose value is the whole batch."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        problem = self.open()
        whole = RecordBatch(
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
        return iter((_Last(self.last_offset, self.max_timestamp, self.timestamp_type, whole),))


class _Salvaged(_Undivided):
    """A batch of a consumer that does not check CRCs: one whose bytes changed has a problem like any other."""

    __slots__ = ()

    def open(self) -> str | None:
        """Decompress the batch in its place; return why its records cannot be read."""
        return super().open() if self.validate_crc() else CHANGED


class _UndividedSet(CheckedSet):
    """Messages of the old formats one by one, or one item that says why they cannot be read."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(self.messages())
        except ValueError as error:
            data, codec = bytes(self._buffer), self.compression_type
            problem = f"of the format {self._magic} is not whole: {error}"
            whole = RecordBatch(data, 0, 1, self._offset, -1, -1, log_append_time=False, codec=codec, problem=problem)
            return iter((_Last(self._offset, -1, 0, whole),))


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
    take_apart_as(consumer, _Undivided, _UndividedSet)


def hand_over_damaged_batches(consumer: Any) -> None:
    """Do the same for a consumer that does not check CRCs: batches that changed come with their problem."""
    take_apart_as(consumer, _Salvaged, _UndividedSet)


def count(polled: ConsumerRecord) -> int:
    """Return how many records one polled item stands for."""
    return polled.value.count if isinstance(polled.value, RecordBatch) else 1


@dataclass(frozen=True, slots=True)
class Polled:
    """What a poll brought: `records` (RECORD columns), and what no record can be made of (REJECTED columns)."""

    records: pa.Table
    unread: pa.Table
    epochs: Mapping[int, int] = field(default_factory=dict[int, int])
    """The leader epoch of the last record batch, by topic partition."""

    def count(self, partition: int) -> int:
        """Return how many rows there are of a topic partition."""
        places = (rows["topic_partition"].to_numpy() for rows in (self.records, self.unread))
        return sum(int(np.count_nonzero(numbers == partition)) for numbers in places)

    def before(self, ends: Mapping[int, int]) -> "Polled":
        """Return what stands before an offset in each topic partition, which has one."""
        return Polled(_before(self.records, ends), _before(self.unread, ends))


def _before(rows: pa.Table, ends: Mapping[int, int]) -> pa.Table:
    inside = np.ones(len(rows), bool)
    partitions, offsets = rows["topic_partition"].to_numpy(), rows["offset"].to_numpy()
    for partition, end in ends.items():
        inside &= (partitions != partition) | (offsets < end)
    return rows.filter(pa.array(inside))


def to_columns(polled: Sequence[ConsumerRecord], starts: dict[int, int], topic_id: str) -> Polled:
    """Return polled batches of one topic as columns, from `starts` (offset by topic partition) on, in order.

    A fetch may begin in the midst of a batch: records before the start are left out. A batch that is not the records
    that it names is one row of `unread`, at its last offset; the other offsets of it hold no record for a reader.
    """
    tables: list[pa.Table] = []
    unread = [_unread(item, item.value.problem, topic_id) for item in polled if _problem(item)]
    for whole, items in groupby((item for item in polled if not _problem(item)), _is_batch):
        for group in _groups(list(items)) if whole else ():
            table, broken = _columns(group, starts, topic_id)
            tables.append(table)
            unread += [_unread(item, not_whole(item.value.count), topic_id) for item in broken]
        if not whole:
            tables.append(_records(list(items), topic_id))
    return Polled(
        pa.concat_tables(tables or [RECORD.empty_table()]),
        pa.concat_tables([REJECTED.empty_table(), *unread]),
        {item.partition: -1 if item.leader_epoch is None else item.leader_epoch for item in polled},
    )


def _problem(item: ConsumerRecord) -> str | None:
    return item.value.problem if _is_batch(item) else None


def _is_batch(item: ConsumerRecord) -> bool:
    return isinstance(item.value, RecordBatch)


def _unread(item: ConsumerRecord, problem: str | None, topic_id: str) -> pa.Table:
    """Return a batch that is not read as one rejected record, with its bytes as far as they are kept."""
    batch: RecordBatch = item.value
    detail = (
        f"The record batch at {item.topic}-{item.partition}, offsets {batch.base_offset:,} to {item.offset:,} "
        f"({batch.count:,} records by its header, {CODECS.get(batch.codec, 'unknown codec')}, {len(batch):,} bytes) "
        f"{problem}. The first {_MOST_KEPT_BYTES >> 20} MiB of its bytes are kept."
    )
    row = _records([item._replace(value=bytes(memoryview(batch.data)[batch.start :][:_MOST_KEPT_BYTES]))], topic_id)
    said = [pa.array([text], pa.string()) for text in (Reason.UNDECODABLE, detail)]
    return pa.table([*row.columns, *said], schema=REJECTED)


def _groups(items: list[ConsumerRecord]) -> Iterator[list[ConsumerRecord]]:
    """Cut batches into groups whose bytes a 32-bit position can tell apart, one behind the other."""
    ends = np.cumsum([len(item.value) for item in items])
    for _, group in groupby(zip(ends.tolist(), items, strict=True), lambda pair: pair[0] // _GROUP_BYTES):
        yield [item for _, item in group]


def _columns(
    items: list[ConsumerRecord], starts: dict[int, int], topic_id: str
) -> tuple[pa.Table, list[ConsumerRecord]]:
    """Return the records of batches as columns, and the batches that are not the records that they name."""
    batches: list[RecordBatch] = [item.value for item in items]
    data = _joined(batches)
    fields, whole = _scan(items, data)
    batch_of = np.repeat(np.arange(len(batches)), [batch.count for batch in batches])
    fields[_OFFSET] += np.array([batch.base_offset for batch in batches])[batch_of]
    wanted = fields[_OFFSET] >= np.array([starts[item.partition] for item in items])[batch_of]
    if not whole.all():
        wanted &= whole[batch_of]
    if not wanted.all():
        fields, batch_of = fields[:, wanted], batch_of[wanted]
    rows = len(batch_of)
    columns = [
        pa.repeat(pa.scalar(topic_id), rows),
        pa.repeat(pa.scalar(items[0].topic), rows),
        pa.array(np.array([item.partition for item in items], np.int32)[batch_of]),
        pa.array(fields[_OFFSET]),
        _bus_time(batches, batch_of, fields[_TIME]),
        _slices(data, fields[_KEY], fields[_KEY_SIZE]),
        _slices(data, fields[_VALUE], fields[_VALUE_SIZE]),
        _headers(data, fields[_HEADERS], fields[_HEADER_COUNT]),
    ]
    return pa.table(columns, schema=RECORD), [items[number] for number in np.flatnonzero(~whole)]


def _joined(batches: list[RecordBatch]) -> np.ndarray:
    """Return the bytes of batches one behind the other; those of a single one, which may be large, where they are."""
    parts = [memoryview(batch.data)[batch.start :] for batch in batches]
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)


def _scan(items: list[ConsumerRecord], data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each field of each record stands in `data`, and which batches are the records that they name."""
    sizes = np.array([len(item.value) for item in items])
    counts = np.array([item.value.count for item in items])
    lasts = np.array([item.offset - item.value.base_offset for item in items])
    fields, whole = np.empty((_FIELDS, counts.sum()), np.int64), np.empty(len(items), bool)
    scan_records(data, sizes, counts, lasts, MOST_HEADERS, fields, whole)
    return fields, whole


def _records(items: list[ConsumerRecord], topic_id: str) -> pa.Table:
    """Return records that came one by one: those of the formats before Kafka 0.11, or of a client without batches."""
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


_GROUP_BYTES = 2**30
_MOST_KEPT_BYTES = 2**20
_FIELDS = 8
_OFFSET, _TIME, _KEY, _KEY_SIZE, _VALUE, _VALUE_SIZE, _HEADERS, _HEADER_COUNT = range(_FIELDS)


def _bus_time(batches: list[RecordBatch], batch_of: np.ndarray, deltas: np.ndarray) -> pa.Array:
    stamped = np.array([batch.log_append_time for batch in batches])
    base_ms = np.where(stamped, [batch.last_bus_ms for batch in batches], [batch.first_bus_ms for batch in batches])
    base_ms, deltas = base_ms[batch_of], np.where(stamped[batch_of], 0, deltas)
    bus_ms = base_ms + deltas
    wrapped = ((base_ms ^ bus_ms) & (deltas ^ bus_ms)) < 0  # their signs are alike, and another one came of it
    return bus_times(np.where(wrapped, -1, bus_ms) if wrapped.any() else bus_ms)


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
