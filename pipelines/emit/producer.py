"""Producing events and raw records to the topic; a failed delivery raises an error, it is never lost.

Records with the same key keep their order and go to one topic partition (Kafka's murmur2 of the key). Values are not
compressed: without another dependency the client supports only gzip, which costs a third of the throughput.
Memory is bounded: the client's own buffer has no limit, so `BulkProducer` waits for the broker.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import pyarrow as pa
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownError

from pipelines.bus.clients import producer, translate_errors
from pipelines.bus.topics import topic_exists
from pipelines.contract.encode import encode
from pipelines.errors import ConfigurationError
from pipelines.settings import KafkaSettings

_BATCH_BYTES = 256 * 1024
_LINGER_MS = 50
_UNACKNOWLEDGED_BYTES = 16 * 1024 * 1024
_RECORD_OVERHEAD_BYTES = 100


class Record(NamedTuple):
    """A record to send; if it has no topic partition, the key decides."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = []  # noqa: RUF012 # the client only reads it
    topic_partition: int | None = None


@dataclass(frozen=True, slots=True)
class Produced:
    """What the broker acknowledged."""

    records: int
    bytes: int
    """Of keys and values."""
    seconds: float


def produce(kafka: KafkaSettings, tables: Iterable[pa.Table]) -> Produced:
    """Send every row of `tables` (EVENT columns) as a record with its user_id as key, and wait for the broker.

    Raises TransientError if a record was not acknowledged, ConfigurationError if the broker rejects one or has no
    such topic. An error of `tables` propagates after the rows before it were sent. A crash or an error leaves an
    unknown part sent: sending everything again is harmless, because each event_id counts once (`once`).
    """
    return produce_records(kafka, _as_records(tables))


def produce_records(kafka: KafkaSettings, records: Iterable[Record]) -> Produced:
    """Send raw records unchanged, valid or not, and wait for the broker. Raises like `produce`."""
    started = monotonic()
    with open_producer(kafka) as client:
        for record in records:
            client.send(record)
    return Produced(client.records, client.bytes, monotonic() - started)


@contextlib.contextmanager
def open_producer(kafka: KafkaSettings) -> "Generator[BulkProducer]":
    """Yield a producer; wait for the broker at the end of the block. Raises like `produce`."""
    if not topic_exists(kafka):
        raise ConfigurationError(f"there is no topic {kafka.topic}: create it with `karmalake topics ensure`")
    with translate_errors(kafka, f"producing to {kafka.topic}"):
        client = BulkProducer(kafka)
        try:
            yield client
        finally:
            client.close()


def _as_records(tables: Iterable[pa.Table]) -> Iterator[Record]:
    for events in tables:
        keys = events["user_id"].cast(pa.binary()).to_pylist()
        for key, value in zip(keys, encode(events).to_pylist(), strict=True):
            yield Record(key, value)


def _delivery_timeout_seconds(kafka: KafkaSettings) -> float:
    """Return how long a record may wait for the broker: the time of two requests."""
    return 2 * kafka.request_timeout_seconds + _LINGER_MS / 1000


def _bulk_options(kafka: KafkaSettings) -> dict[str, Any]:
    timeout_ms = int(1000 * _delivery_timeout_seconds(kafka))
    return {
        "acks": "all",
        "enable_idempotence": True,
        "batch_size": _BATCH_BYTES,
        "linger_ms": _LINGER_MS,
        "delivery_timeout_ms": timeout_ms,
        "max_block_ms": timeout_ms,
    }


class BulkProducer:
    """A Kafka producer with bounded memory that counts records and raises the first delivery failure.

    After a failure it is unusable, and it is unknown which records since the last `flush` were sent.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._client = producer(kafka, **_bulk_options(kafka))
        self._topic = kafka.topic
        self._delivery_timeout_seconds = _delivery_timeout_seconds(kafka)
        self._failure: Exception | None = None
        self._has_failed_flush = False
        self._unacknowledged_bytes = 0
        self.records = 0
        self.bytes = 0

    def send(self, record: Record) -> None:
        """Buffer a record for sending; flush when too many bytes are unacknowledged."""
        key, value, headers, topic_partition = record
        try:
            future = self._client.send(self._topic, value, key, headers, topic_partition)
        except KafkaError as error:
            raise self._failure or error from None  # after a failure, the client only reports that it is closed
        future.add_errback(self._on_failure)
        size = len(key or b"") + len(value or b"")
        self.records += 1
        self.bytes += size
        self._unacknowledged_bytes += size + _RECORD_OVERHEAD_BYTES
        if self._unacknowledged_bytes > _UNACKNOWLEDGED_BYTES:
            self.flush()

    def close(self) -> None:
        """Flush, unless a flush has failed already, and close the client."""
        try:
            if not self._has_failed_flush:
                self.flush()
        finally:
            self._client.close()

    def flush(self) -> None:
        """Wait until the broker has acknowledged every record; raise the first failure."""
        self._has_failed_flush = True
        deadline = monotonic() + self._delivery_timeout_seconds
        while not self._try_flush(deadline - monotonic()):
            pass
        self._unacknowledged_bytes = 0
        if self._failure is not None:
            raise self._failure
        self._has_failed_flush = False

    def _try_flush(self, seconds: float) -> bool:
        try:
            self._client.flush(timeout=max(0.0, seconds))
        except KafkaTimeoutError:
            # Without this, close() blocks forever: while no broker answers, the client never expires batches that need
            # a new producer id.
            self._abort()
            raise
        except UnknownError:
            return False  # a batch above the topic's max.message.bytes was split: its parts are still pending
        return True

    def _on_failure(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._abort()  # otherwise the client sends later records, even with the same key

    def _abort(self) -> None:
        self._client._sender.force_close()  # noqa: SLF001 # no public API
