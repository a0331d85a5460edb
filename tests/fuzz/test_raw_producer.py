"""What brokers make of batches that lie: the embedded one stores them, Apache Kafka refuses most, and not all."""

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
_LIES = {
    "count too large": replace(_GOOD, records=2**31 - 1, last_offset_delta=0),
    "count of none": replace(_GOOD, records=0, last_offset_delta=0),
    "no records": replace(_GOOD, body=b"\xff" * 50),
    "no gzip": replace(_GOOD, body=b"no gzip at all", attributes=wire.GZIP),
    "time in microseconds": replace(_GOOD, first_ms=_NOW_MS * 1_000, max_ms=_NOW_MS * 1_000),
}
_TAKEN = {
    "offset below the batch": wire.batch_of([wire.record(b"v", delta=-9)], first_ms=_NOW_MS),
    "one offset twice": wire.batch_of([wire.record(b"v"), wire.record(b"w")], first_ms=_NOW_MS),
    "no time": replace(_GOOD, first_ms=-1, max_ms=-1),
    "time 0": replace(_GOOD, first_ms=0, max_ms=0),
    "header key of no text": wire.batch_of([wire.record(b"v", headers=[(b"\xff\xfe", None)])], first_ms=_NOW_MS),
    "127 MiB of zeros": wire.batch_of([wire.record(bytes(127 * 2**20))], codec=wire.ZSTD, first_ms=_NOW_MS),
}
"""By both: what stands between producers and ingest does not look at these."""


def _fates(kafka: KafkaSettings, batches: dict[str, wire.Batch]) -> Iterator[str]:
    """Yield the names of the batches that the broker takes."""
    ensure_topic(kafka)
    assert kafka.bootstrap_servers is not None
    with RawProducer(kafka.bootstrap_servers) as producer:
        for name, batch in batches.items():
            try:
                producer.send(kafka.topic, 0, bytes(batch))
            except RefusedError:
                continue
            yield name


def test_the_embedded_broker_takes_what_it_is_sent(settings: Settings) -> None:
    """So chaos can send it anything."""
    assert list(_fates(settings.kafka, _LIES | _TAKEN)) == [*_LIES, *_TAKEN]


@pytest.mark.jvm
def test_kafka_looks_into_batches_and_takes_some_lies(kafka: KafkaCluster) -> None:
    """What it takes is what any producer of a topic can do to its readers."""
    found = kafka.settings(topic=kafka.new_topic(), partitions=1)
    assert list(_fates(found, _LIES | _TAKEN)) == list(_TAKEN)
