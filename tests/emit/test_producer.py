"""Records handed to the producer are on the topic, once and in order; otherwise it raises an error."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.contract import event_pb2
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import Record, open_producer, produce, produce_records
from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.settings import KafkaSettings, RedisSettings, Settings

TIME = datetime(2010, 11, 8, 18, 45, 11, 728361, tzinfo=UTC)


def _events(first: int, count: int) -> pa.Table:
    rows = [
        {
            "event_id": f"e{number}",
            "user_id": f"user-{number % 7}",
            "action_type": "DriverRated",
            "event_time": TIME + timedelta(microseconds=number),
            "metadata": [("rating", str(number % 5 + 1))],
        }
        for number in range(first, first + count)
    ]
    return pa.Table.from_pylist(rows, schema=EVENT)


def read_topic(kafka: KafkaSettings) -> list:
    """Return every record of the topic with a plain consumer, by topic partition."""
    topic = describe_topic(kafka)
    assert topic is not None
    records: list = []
    consumer = KafkaConsumer(**kafka.client_config())
    try:
        for state in topic.partitions:
            place = TopicPartition(topic.name, state.partition)
            consumer.assign([place])
            consumer.seek(place, state.begin_offset)
            while consumer.position(place) < state.end_offset:
                records += consumer.poll(timeout_ms=1000).get(place, [])
    finally:
        consumer.close()
    return records


def test_events_arrive_once_in_order_and_by_key(bus: KafkaSettings) -> None:
    """Each event is on the topic once, keyed by user_id, in the partition that Kafka's own clients choose."""
    ensure_topic(bus)
    produced = produce(bus, (_events(first, 500) for first in (0, 500)))
    records = read_topic(bus)
    assert produced.records == len(records) == 1000
    assert produced.bytes == sum(len(record.key) + len(record.value) for record in records)
    by_user: dict[bytes, list[int]] = defaultdict(list)
    for record in records:
        event = event_pb2.Event.FromString(record.value)
        assert record.key == event.user_id.encode()
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % 4
        by_user[record.key].append(event.timestamp.ToMicroseconds())
    assert all(times == sorted(times) for times in by_user.values())
    assert sum(len(set(times)) for times in by_user.values()) == 1000


def test_raw_records_are_sent_as_they_are(bus: KafkaSettings) -> None:
    """Undecodable values, tombstones, missing keys, headers and a given topic partition are sent unchanged."""
    ensure_topic(bus)
    sent = [
        Record(b"k", b"\xff\xfe", [("origin", b"\x00")], 3),
        Record(b"k", None, topic_partition=3),
        Record(None, b"", topic_partition=3),
    ]
    assert produce_records(bus, sent).bytes == 4
    found = [(record.key, record.value, list(record.headers), record.partition) for record in read_topic(bus)]
    assert found == [tuple(record) for record in sent]


def test_a_missing_topic_is_reported_before_sending(bus: KafkaSettings) -> None:
    """A producer creates no topic: a misspelled name is an error."""
    with pytest.raises(ConfigurationError, match="karmalake topics ensure"):
        produce(bus, [_events(0, 1)])
    assert describe_topic(bus) is None


def test_records_before_an_error_of_the_source_are_sent(bus: KafkaSettings) -> None:
    """If the source raises, the error propagates, and records before it are on the topic."""
    ensure_topic(bus)

    def tables() -> Iterator[pa.Table]:
        yield _events(0, 100)
        raise UsageError("row 101")

    with pytest.raises(UsageError, match="row 101"):
        produce(bus, tables())
    assert len(read_topic(bus)) == 100


def test_a_record_too_large_is_refused_by_name(bus: KafkaSettings) -> None:
    """A record above the client's limit is an error that names it; the records before it are sent."""
    ensure_topic(bus)
    with pytest.raises(ConfigurationError, match=r"larger than .*max\.message\.bytes of the topic"):
        produce_records(bus, [Record(b"k", b"small"), Record(b"k", b"x" * 2_000_000)])
    assert len(read_topic(bus)) == 1


def test_records_after_a_failure_are_not_sent(bus: KafkaSettings) -> None:
    """After a failure the producer sends nothing more: a user's later event must not overtake an earlier one."""
    ensure_topic(bus)
    with open_producer(bus) as client:
        client.send(Record(b"ann", b"1"))
        client.flush()
        client._on_failure(KafkaError("no answer"))
        with pytest.raises(KafkaError, match="no answer"):
            client.send(Record(b"ann", b"2"))
        with pytest.raises(KafkaError, match="no answer"):
            client.flush()
    assert [record.value for record in read_topic(bus)] == [b"1"]


@pytest.mark.slow
@pytest.mark.usefixtures("broken_connections")
def test_a_broker_outage_is_an_error(tmp_path: Path) -> None:
    """Records that were never acknowledged are reported within the configured timeout."""
    local = Settings(data_dir=tmp_path, redis=RedisSettings.model_validate({"url": "redis://unused"}))
    start(local)
    try:
        patient = with_local_endpoints(local).kafka.model_copy(update={"topic": "events"})
        ensure_topic(patient)
        kafka = patient.model_copy(update={"request_timeout_seconds": 0.5})

        def tables() -> Iterator[pa.Table]:
            yield _events(0, 10)
            stop(local)
            yield _events(10, 10)

        with pytest.raises(TransientError, match="producing to events"):
            produce(kafka, tables())
    finally:
        stop(local)
