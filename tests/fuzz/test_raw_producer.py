"""How brokers handle invalid batches: the embedded one stores them, Apache Kafka rejects most, but not all."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipelines.bus.topics import ensure_topic
from pipelines.settings import KafkaSettings, Settings
from tests.fuzz import wire
from tests.fuzz.raw_producer import RawProducer, RefusedError
from tests.services.kafka_cluster import KafkaCluster

_NOW_MS = int(datetime.now(UTC).timestamp() * 1000)
_GOOD = wire.batch_of([wire.record(b"v")], first_ms=_NOW_MS)
_INVALID_BATCHES = {
    "count too large": replace(_GOOD, records=2**31 - 1, last_offset_delta=0),
    "count 0": replace(_GOOD, records=0, last_offset_delta=0),
    "no records": replace(_GOOD, body=b"\xff" * 50),
    "no gzip": replace(_GOOD, body=b"no gzip at all", attributes=wire.GZIP),
    "time in microseconds": replace(_GOOD, first_ms=_NOW_MS * 1_000, max_ms=_NOW_MS * 1_000),
}
_ACCEPTED_BY_KAFKA = {
    "offset below the batch": wire.batch_of([wire.record(b"v", delta=-9)], first_ms=_NOW_MS),
    "one offset twice": wire.batch_of([wire.record(b"v"), wire.record(b"w")], first_ms=_NOW_MS),
    "no time": replace(_GOOD, first_ms=-1, max_ms=-1),
    "time 0": replace(_GOOD, first_ms=0, max_ms=0),
    "header key that is not text": wire.batch_of([wire.record(b"v", headers=[(b"\xff\xfe", None)])], first_ms=_NOW_MS),
    "127 MiB of zeros": wire.batch_of([wire.record(bytes(127 * 2**20))], codec=wire.ZSTD, first_ms=_NOW_MS),
}
"""Both brokers accept these, so ingest must handle them."""


def _accepted(kafka: KafkaSettings, batches: dict[str, wire.Batch]) -> Iterator[str]:
    """Yield the names of the batches that the broker accepts."""
    ensure_topic(kafka)
    assert kafka.bootstrap_servers is not None
    with RawProducer(kafka.bootstrap_servers) as producer:
        for name, batch in batches.items():
            try:
                producer.send(kafka.topic, 0, bytes(batch))
            except RefusedError:
                continue
            yield name


def test_the_embedded_broker_accepts_any_batch(settings: Settings) -> None:
    """So chaos runs can send it anything."""
    assert list(_accepted(settings.kafka, _INVALID_BATCHES | _ACCEPTED_BY_KAFKA)) == [
        *_INVALID_BATCHES,
        *_ACCEPTED_BY_KAFKA,
    ]


@pytest.mark.jvm
def test_kafka_accepts_some_invalid_batches(kafka: KafkaCluster) -> None:
    """Every producer of a topic can send its readers what Kafka accepts."""
    found = kafka.settings(topic=kafka.new_topic(), partitions=1)
    assert list(_accepted(found, _INVALID_BATCHES | _ACCEPTED_BY_KAFKA)) == list(_ACCEPTED_BY_KAFKA)
