"""What identifies a position in a log: the last record read before it.

An offset does not: a log may lose its end (a power cut, an unclean election, a restored disk) and grow again past it.
So a checkpoint goes with a digest of the last record read and the leader epoch of its batch, and both are compared
with the log before it is read on (`nothing-lost`). A record that retention or compaction removed is not compared.
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
from pipelines.ingest.batches import Polled, hand_over_batches, to_columns
from pipelines.ingest.ranges import LastRead
from pipelines.settings import KafkaSettings

LOG_TRUNCATION: type[Exception] = kafka_errors.LogTruncationError  # pyright: ignore[reportAttributeAccessIssue]
"""What the client raises once the broker's epochs tell that the log was cut before a position."""
_POLL_MS = 100
_PATIENCE_SECONDS = 3.0
"""For a record, once the brokers have answered: it may have been removed, and nothing may have come since."""
_PREFIX_BYTES = 8
_OPTIONS: Mapping[str, Any] = {
    "group_id": None,
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "isolation_level": "read_committed",
    "max_partition_fetch_bytes": 64 * 1024,  # a record batch of any size is still read
    "fetch_max_wait_ms": _POLL_MS,
}


def last_read(polled: Polled, partition: int) -> LastRead | None:
    """Return the last record of a topic partition; None where there is none, or what follows it was not read whole."""
    rows = np.flatnonzero(polled.records["topic_partition"].to_numpy() == partition)
    if not len(rows):
        return None
    row = polled.records.slice(rows[-1], 1)
    offset = row["offset"][0].as_py()
    unread = polled.unread.select(["topic_partition", "offset"]).to_pylist()
    if any(at["topic_partition"] == partition and at["offset"] > offset for at in unread):
        return None
    return LastRead(offset, _digest(row), polled.epochs.get(partition, -1))


def seek(consumer: Any, place: TopicPartition, offset: int, epoch: int = -1) -> None:
    """Move a consumer; with the epoch of what was read before, the broker tells if the log was cut since."""
    consumer.seek(place, offset)
    if epoch >= 0:
        state = consumer._subscription.assignment[place]  # noqa: SLF001 - there is no public way
        state.position = OffsetAndMetadata(offset, "", epoch)


def find_overwritten(kafka: KafkaSettings, expected: Mapping[TopicPartition, LastRead]) -> set[TopicPartition]:
    """Return where the log no longer has the record that was read last, but another one, or an older epoch.

    Says nothing of a log that does not reach that far. Reads with a consumer of its own, so that the one that reads on
    keeps what it has fetched. Raises KafkaTimeoutError when the brokers do not answer.
    """
    with consumer(kafka, **_OPTIONS) as reader:
        hand_over_batches(reader)
        limit_polls(reader, 1, 1)
        reader.assign(list(expected))
        for place, last in expected.items():
            seek(reader, place, last.offset, last.epoch)
        return _compare(reader, dict(expected), kafka.request_timeout_seconds)


def _compare(reader: Any, pending: dict[TopicPartition, LastRead], patience: float) -> set[TopicPartition]:
    overwritten: set[TopicPartition] = set()
    start = time.monotonic()
    while pending and time.monotonic() < start + (patience if _silent(reader, pending) else _PATIENCE_SECONDS):
        try:
            found = reader.poll(_POLL_MS, max_records=1)
            done = found.keys() | {place for place in pending if reader.position(place) > pending[place].offset}
            overwritten |= {place for place, items in found.items() if _differs(items[0], pending[place])}
        except LOG_TRUNCATION as error:
            done = set(error.divergent_offsets)  # pyright: ignore[reportAttributeAccessIssue]
            overwritten |= done
        except OffsetOutOfRangeError as error:  # whoever reads on from there is told the same
            done = set(error.args[0])
        pending = {place: last for place, last in pending.items() if place not in done}
        if done:
            reader.assign(list(pending))
    if silent := _silent(reader, pending):
        raise KafkaTimeoutError(f"the brokers sent nothing of {', '.join(f'{p.topic}-{p.partition}' for p in silent)}")
    return overwritten


def _silent(reader: Any, pending: Iterable[TopicPartition]) -> list[TopicPartition]:
    """Return the topic partitions of which a reader has heard nothing yet."""
    return [place for place in pending if reader.highwater(place) is None]


def _differs(polled: ConsumerRecord, last: LastRead) -> bool:
    """Return whether what comes at an offset is another record than was read there; False if none is there."""
    records = to_columns([polled], {polled.partition: last.offset}, "").records
    return bool(len(records)) and records["offset"][0].as_py() == last.offset and _digest(records) != last.digest


def _digest(rows: Any) -> int:
    """Return 63 bits that tell the first of some records (RECORD columns) from others: by time, key and value."""
    digest = blake2b(digest_size=_PREFIX_BYTES)
    digest.update(repr(rows["bus_time"].cast("int64")[0].as_py()).encode())
    for name in ("key", "value"):
        content = rows[name][0].as_py()
        digest.update(b"-" if content is None else len(content).to_bytes(_PREFIX_BYTES, "big"))
        digest.update(content or b"")
    return int.from_bytes(digest.digest(), "big") >> 1
