"""Sending events and raw records to the topic; a delivery that failed is raised, never lost.

Records of one key keep their order and go to one topic partition (Kafka's murmur2 of the key). Values are not
compressed: without a further dependency the client knows only gzip, which costs a third of the speed.
Memory is bounded: the client itself would buffer without end, so it is made to wait for the broker.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import pyarrow as pa
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownError

from pipelines.bus.clients import producer, translated
from pipelines.bus.topics import topic_exists
from pipelines.contract.encode import encode
from pipelines.errors import ConfigurationError
from pipelines.settings import KafkaSettings

_BATCH_BYTES = 256 * 1024
_LINGER_MS = 50
_UNACKNOWLEDGED_BYTES = 16 * 1024 * 1024
_RECORD_OVERHEAD_BYTES = 100


class Record(NamedTuple):
    """A record to send; without a topic partition the key decides."""

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

    Raises TransientError if a record was not acknowledged, ConfigurationError if the broker refuses one or has no
    such topic; whatever `tables` raises goes through, after what came before it was sent. A crash or an error leaves
    an unknown part sent: sending all of it again is harmless, because each event_id counts once (`once`).
    """
    return produce_records(kafka, _as_records(tables))


def produce_records(kafka: KafkaSettings, records: Iterable[Record]) -> Produced:
    """Send raw records as they are, valid or not, and wait for the broker; errors as in `produce`."""
    started = monotonic()
    with delivering(kafka) as delivery:
        for record in records:
            delivery.send(record)
    return Produced(delivery.records, delivery.bytes, monotonic() - started)


@contextlib.contextmanager
def delivering(kafka: KafkaSettings) -> "Generator[Delivery]":
    """Yield an open producer; leaving it waits for the broker. Errors as in `produce`."""
    if not topic_exists(kafka):
        raise ConfigurationError(f"there is no topic {kafka.topic}: create it with `karmalake topics ensure`")
    with translated(kafka, f"producing to {kafka.topic}"):
        delivery = Delivery(kafka)
        try:
            yield delivery
        finally:
            delivery.finish()


def _as_records(tables: Iterable[pa.Table]) -> Iterator[Record]:
    for events in tables:
        keys = events["user_id"].cast(pa.binary()).to_pylist()
        for key, value in zip(keys, encode(events).to_pylist(), strict=True):
            yield Record(key, value)


def _patience_seconds(kafka: KafkaSettings) -> float:
    """Return how long a record may wait for the broker: two requests."""
    return 2 * kafka.request_timeout_seconds + _LINGER_MS / 1000


def _bulk_options(kafka: KafkaSettings) -> dict[str, Any]:
    patience_ms = int(1000 * _patience_seconds(kafka))
    return {
        "acks": "all",
        "allow_auto_create_topics": False,
        "enable_idempotence": True,
        "batch_size": _BATCH_BYTES,
        "linger_ms": _LINGER_MS,
        "delivery_timeout_ms": patience_ms,
        "max_block_ms": patience_ms,
    }


class Delivery:
    """One client: counts what it was handed, and remembers the first failure that it reports.

    After a failure it is of no more use: what it was handed since the last `wait` is sent or not, nobody knows.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._client = producer(kafka, **_bulk_options(kafka))
        self._topic = kafka.topic
        self._patience_seconds = _patience_seconds(kafka)
        self._failure: Exception | None = None
        self._is_spent = False
        self._unacknowledged_bytes = 0
        self.records = 0
        self.bytes = 0

    def send(self, record: Record) -> None:
        """Hand over a record; now and then wait for the broker, so that memory stays bounded."""
        key, value, headers, topic_partition = record
        try:
            future = self._client.send(self._topic, value, key, headers, topic_partition)
        except KafkaError as error:
            raise self._failure or error from None  # after a failure, the client says no more than that it is closed
        future.add_errback(self._remember)
        size = len(key or b"") + len(value or b"")
        self.records += 1
        self.bytes += size
        self._unacknowledged_bytes += size + _RECORD_OVERHEAD_BYTES
        if self._unacknowledged_bytes > _UNACKNOWLEDGED_BYTES:
            self.wait()

    def finish(self) -> None:
        """Wait for everything that was sent, unless a wait has failed already, and close the client."""
        try:
            if not self._is_spent:
                self.wait()
        finally:
            self._client.close()

    def wait(self) -> None:
        """Return when the broker has acknowledged everything that was sent; raise the first failure otherwise."""
        self._is_spent = True
        deadline = monotonic() + self._patience_seconds
        while not self._flushed(deadline - monotonic()):
            pass
        self._unacknowledged_bytes = 0
        if self._failure is not None:
            raise self._failure
        self._is_spent = False

    def _flushed(self, seconds: float) -> bool:
        try:
            self._client.flush(timeout=max(0.0, seconds))
        except KafkaTimeoutError:
            # Without this, close() waits for ever: while no broker answers, the client expires nothing that needs
            # a new producer id.
            self._send_no_more()
            raise
        except UnknownError:
            return False  # a batch above the topic's max.message.bytes was split: its parts are still to be waited for
        return True

    def _remember(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._send_no_more()  # the client would go on with what stands behind it, under the same key too

    def _send_no_more(self) -> None:
        self._client._sender.force_close()  # noqa: SLF001 # there is no public way
