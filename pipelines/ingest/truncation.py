"""Detection of log truncation, by the last record read before a checkpoint.

An offset does not identify a position: a log may lose its end (a power cut, an unclean leader election, a restored
disk) and grow past it again. A checkpoint therefore goes with a digest of the last record read and the leader epoch of
its batch. Both are compared with the log before reading continues (`nothing-lost`). A record that retention or
compaction removed is not compared.
"""

import time
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.bus.clients import consumer
from pipelines.bus.records import limit_polls
from pipelines.ingest.batch import LastRead
from pipelines.ingest.record_batches import Polled, install_raw_batches, to_columns
from pipelines.settings import KafkaSettings

LOG_TRUNCATION: type[Exception] = kafka_errors.LogTruncationError  # pyright: ignore[reportAttributeAccessIssue]
"""Raised by the client if the broker's leader epochs show that the log was truncated before a position."""
_POLL_MS = 100
_RECORD_WAIT_SECONDS = 3.0
"""How long to wait for a record once the brokers have answered: it may have been removed, with none after it."""
_WORD_BYTES = 8
_OPTIONS: Mapping[str, Any] = {
    "group_id": None,
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "isolation_level": "read_committed",
    "max_partition_fetch_bytes": 64 * 1024,  # a record batch of any size is still read
    "fetch_max_wait_ms": _POLL_MS,
}


def last_read(polled: Polled, partition: int) -> LastRead | None:
    """Return the last record of a topic partition; None if there is none, or if an unreadable batch follows it."""
    rows = np.flatnonzero(polled.records["topic_partition"].to_numpy() == partition)
    if not len(rows):
        return None
    row = polled.records.slice(rows[-1], 1)
    offset = row["offset"][0].as_py()
    unreadable = polled.unreadable.select(["topic_partition", "offset"]).to_pylist()
    if any(batch["topic_partition"] == partition and batch["offset"] > offset for batch in unreadable):
        return None
    return LastRead(offset, _digest(row), polled.epochs.get(partition, -1))


def seek(consumer: Any, tp: TopicPartition, offset: int, epoch: int = -1) -> None:
    """Move a consumer to an offset; with the leader epoch of the record before it, the broker detects truncation."""
    consumer.seek(tp, offset)
    if epoch >= 0:
        state = consumer._subscription.assignment[tp]  # noqa: SLF001 - there is no public way
        state.position = OffsetAndMetadata(offset, "", epoch)


def find_truncated(kafka: KafkaSettings, expected: Mapping[TopicPartition, LastRead]) -> set[TopicPartition]:
    """Return the topic partitions whose log has another record, or an older epoch, in place of the expected record.

    A log that ends before that offset is not reported. Reads with a consumer of its own, so that the caller's consumer
    keeps what it has fetched. Raises KafkaTimeoutError if the brokers do not answer.
    """
    with consumer(kafka, **_OPTIONS) as reader:
        install_raw_batches(reader)
        limit_polls(reader, 1, 1)
        reader.assign(list(expected))
        for tp, last in expected.items():
            seek(reader, tp, last.offset, last.epoch)
        return _compare(reader, dict(expected), kafka.request_timeout_seconds)


def _compare(reader: Any, pending: dict[TopicPartition, LastRead], timeout_seconds: float) -> set[TopicPartition]:
    truncated: set[TopicPartition] = set()
    start = time.monotonic()
    while pending and time.monotonic() < start + (
        timeout_seconds if _silent(reader, pending) else _RECORD_WAIT_SECONDS
    ):
        try:
            found = reader.poll(_POLL_MS, max_records=1)
            done = found.keys() | {tp for tp in pending if reader.position(tp) > pending[tp].offset}
            truncated |= {tp for tp, items in found.items() if _differs(items[0], pending[tp])}
        except LOG_TRUNCATION as error:
            done = set(error.divergent_offsets)  # pyright: ignore[reportAttributeAccessIssue]
            truncated |= done
        except OffsetOutOfRangeError as error:  # the caller's own poll raises the same
            done = set(error.args[0])
        pending = {tp: last for tp, last in pending.items() if tp not in done}
        if done:
            reader.assign(list(pending))
    if silent := _silent(reader, pending):
        names = ", ".join(f"{tp.topic}-{tp.partition}" for tp in silent)
        raise KafkaTimeoutError(f"the brokers did not answer a fetch of {names}")
    return truncated


def _silent(reader: Any, pending: Iterable[TopicPartition]) -> list[TopicPartition]:
    """Return the topic partitions for which no fetch was answered yet."""
    return [tp for tp in pending if reader.highwater(tp) is None]


def _differs(polled: ConsumerRecord, last: LastRead) -> bool:
    """Return whether the record at the offset of `last` is another one; False if there is no record."""
    records = to_columns([polled], {polled.partition: last.offset}, "").records
    return bool(len(records)) and records["offset"][0].as_py() == last.offset and _digest(records) != last.digest


def _digest(rows: Any) -> int:
    """Return a 63-bit digest of time, key and value of the first of `rows` (RECORD columns)."""
    digest = blake2b(digest_size=_WORD_BYTES)
    digest.update(repr(rows["bus_time"].cast("int64")[0].as_py()).encode())
    for name in ("key", "value"):
        content = rows[name][0].as_py()
        digest.update(b"-" if content is None else len(content).to_bytes(_WORD_BYTES, "big"))
        digest.update(content or b"")
    return int.from_bytes(digest.digest(), "big") >> 1
