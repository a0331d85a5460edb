"""What only a real Apache Kafka does: retention, transactions, compressions, growing topics, consumer groups."""

import uuid
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.structs import TopicPartition

from pipelines.drain import accept_loss, drain, open_ingest
from pipelines.emit.clients import admin_client
from pipelines.emit.producer import Record
from pipelines.emit.topics import describe_topic, ensure_topic
from pipelines.errors import LostRecordsError
from pipelines.ingest.ranges import OffsetRange
from pipelines.lake.commit import CommitRecord, commit_batch
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import create_lake, open_lake
from pipelines.settings import Settings
from tests.draining import assert_verified, contents, drain_all, query, send, valid_records, with_ingest
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import wait_for

pytestmark = pytest.mark.jvm


@pytest.fixture
def bus(kafka: KafkaCluster, settings: Settings) -> Settings:
    """Return settings of Apache Kafka with a topic of one partition that does not exist yet."""
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 1}
    return with_ingest(settings.model_copy(update={"kafka": kafka.settings(**names)}), max_wait_seconds=0.5)


def test_retention_that_overtook_the_checkpoint_stops_ingest(bus: Settings) -> None:
    """Records that are gone are named by place and number; nothing is committed (`nothing-lost`)."""
    _overtake(bus)
    before = contents(bus)
    with pytest.raises(LostRecordsError, match=rf"{bus.kafka.topic}-0@20: retention removed 15 .*--accept-loss"):
        drain_all(bus)
    assert contents(bus) == before


def test_an_accepted_loss_stands_on_the_record(bus: Settings) -> None:
    """Accepting writes what is lost into the commits table; ingest goes on at the log's start; it all adds up."""
    _overtake(bus)
    with open_ingest(bus) as ingest:
        record = accept_loss(ingest)
        assert record is not None
        assert (record.total("lost"), record.total("read")) == (15, 0)
        assert "15 records never read" in str(record.note)
        assert accept_loss(ingest) is None
        drain(ingest, lambda _: None)
    assert query(bus, "SELECT count(*) FROM events") == [(35,)]
    assert query(bus, "SELECT source, lost FROM commits WHERE lost > 0") == [("accepted loss", 15)]
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(50,)]
    assert_verified(bus)


def test_without_a_loss_there_is_nothing_to_accept(bus: Settings) -> None:
    """On a whole log, read or unread, accept_loss commits nothing."""
    send(bus, valid_records(range(5)))
    with open_ingest(bus) as ingest:
        assert accept_loss(ingest) is None
        drain(ingest, lambda _: None)
        assert accept_loss(ingest) is None
    assert len(query(bus, "SELECT * FROM commits")) == 1


def test_a_log_shorter_than_the_checkpoint_stops_ingest(bus: Settings) -> None:
    """A log that lost its end is read again from its start, once that is accepted, and no event counts twice."""
    send(bus, [*valid_records(range(20)), Record(b"k", b"\xff")])
    drain_all(bus)
    _pretend_to_have_read(bus, 21, 50)
    with pytest.raises(LostRecordsError, match="-0@50: the log ends before the checkpoint"):
        drain_all(bus)
    with open_ingest(bus) as ingest:
        record = accept_loss(ingest)
        assert record is not None
        assert str(record.ranges[0]) == f"{bus.kafka.topic}-0@50..0"
        records: list[CommitRecord] = []
        drain(ingest, records.append)
    assert sum(record.total("duplicates") for record in records) == 20
    assert query(bus, "SELECT count(*) FROM events") == [(20,)]
    assert query(bus, "SELECT count(*) FROM dead_letters") == [(2,)], "as often as the record was read"
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(21,)]
    assert_verified(bus)


def test_transactions_are_read_committed(bus: Settings) -> None:
    """Of transactions the committed ones land; aborted records and control records are gaps, and it all adds up."""
    ensure_topic(bus.kafka)
    with closing(_producer(bus, transactional_id=uuid.uuid4().hex)) as producer:
        producer.init_transactions()
        for numbers, end in (
            (range(10), producer.commit_transaction),
            (range(10, 17), producer.abort_transaction),
            (range(17, 20), producer.commit_transaction),
        ):
            producer.begin_transaction()
            _send_with(producer, bus, valid_records(numbers))
            end()
    records = drain_all(bus)
    assert sum(record.total("accepted") for record in records) == 13
    assert sum(record.total("gaps") for record in records) == 7 + 3
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(23,)]
    assert drain_all(bus) == []
    assert_verified(bus)


def test_an_open_transaction_is_waited_for(bus: Settings) -> None:
    """Records of a transaction that has not ended are not read; the checkpoint stays before them."""
    ensure_topic(bus.kafka)
    send(bus, valid_records(range(5)))
    with closing(_producer(bus, transactional_id=uuid.uuid4().hex)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        _send_with(producer, bus, valid_records(range(5, 10)))
        drain_all(bus)
        assert query(bus, "SELECT next_offset FROM checkpoints") == [(5,)]
        producer.commit_transaction()
    drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(10,)]
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(11,)]
    assert_verified(bus)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_each_compression_lands(bus: Settings, compression: str) -> None:
    """Whatever a producer compresses with, every record lands, in batches that a checkpoint may cut."""
    ensure_topic(bus.kafka)
    with closing(_producer(bus, compression_type=compression, linger_ms=50)) as producer:
        _send_with(producer, bus, [*valid_records(range(300)), Record(b"k", b"\xff", [("trace", b"1")])])
    drain_all(bus)
    assert query(bus, "SELECT count(DISTINCT event_id), count(*) FROM events") == [(300, 300)]
    assert query(bus, "SELECT key, value, headers FROM dead_letters") == [
        (b"k", b"\xff", [{"key": "trace", "value": b"1"}])
    ]
    assert_verified(bus)


def test_bus_time_is_the_brokers_or_the_producers(bus: Settings, kafka: KafkaCluster) -> None:
    """The time of a record is the one that the broker gives, also where the topic says LogAppendTime."""
    kafka.create_topic(bus.kafka.topic, 1, message_timestamp_type="LogAppendTime")
    started = datetime.now(UTC)
    with closing(_producer(bus)) as producer:
        _send_with(producer, bus, valid_records(range(3)), timestamp_ms=1_000_000_000_000)
    drain_all(bus)
    (first, last) = query(bus, "SELECT min(bus_time), max(bus_time) FROM events")[0]
    assert started.timestamp() - 1 <= first.timestamp() <= last.timestamp() <= datetime.now(UTC).timestamp() + 1


def test_a_topic_that_grew_is_read_whole(bus: Settings, kafka: KafkaCluster) -> None:
    """New topic partitions are read from their start, while it is open too; keys that moved count once."""
    send(bus, valid_records(range(20)))
    with open_ingest(bus) as ingest:
        drain(ingest, lambda _: None)
        with kafka.admin() as admin:
            admin.create_partitions({bus.kafka.topic: 4})
        wait_for("the new topic partitions", lambda: _partitions(bus) == 4)
        send(bus, valid_records(range(10, 60)))
        drain(ingest, lambda _: None)
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(60, 60)]
    assert len(query(bus, "SELECT * FROM checkpoints WHERE next_offset > 0")) > 1
    assert_verified(bus)


def test_the_group_follows_the_lake(bus: Settings, kafka: KafkaCluster) -> None:
    """Lag tools see the checkpoints as the group's offsets; a wrong offset there moves nothing."""
    send(bus, valid_records(range(20)))
    drain_all(bus)
    place = TopicPartition(bus.kafka.topic, 0)
    with kafka.admin() as admin:
        offsets = admin.list_group_offsets([bus.kafka.group_id])[bus.kafka.group_id]
        assert offsets[place].offset == 20
        admin.alter_group_offsets(bus.kafka.group_id, {place: offsets[place]._replace(offset=3)})
    send(bus, valid_records(range(20, 25)))
    (record,) = drain_all(bus)
    assert (record.total("read"), record.total("accepted")) == (5, 5)


def _overtake(bus: Settings) -> None:
    """Drain 20 records, then let retention remove those 20 and 15 of 30 more."""
    send(bus, valid_records(range(20)))
    drain_all(bus)
    send(bus, valid_records(range(20, 50)))
    with admin_client(bus.kafka) as admin:
        admin.delete_records({TopicPartition(bus.kafka.topic, 0): 35})
    wait_for("the records to be gone", lambda: _begin(bus) == 35)


def _begin(bus: Settings) -> int:
    topic = describe_topic(bus.kafka)
    assert topic is not None
    return topic.partitions[0].begin_offset


def _partitions(bus: Settings) -> int:
    topic = describe_topic(bus.kafka)
    assert topic is not None
    return len(topic.partitions)


def _pretend_to_have_read(bus: Settings, start: int, end: int) -> None:
    """Move the checkpoint, as if the broker had had records that it then lost with its disk."""
    lake = create_lake(bus.lake_root)
    ((topic_id, _),) = take_snapshot(open_lake(bus.lake_root)).checkpoints
    gone = OffsetRange(topic_id, bus.kafka.topic, 0, start, end, gaps=end - start)
    commit_batch(lake, lake.table("events"), [], CommitRecord("gone", "test", datetime.now(UTC), (gone,)))


def _producer(bus: Settings, **options: Any) -> Any:
    client: Any = KafkaProducer
    return client(**bus.kafka.client_config(), **options)


def _send_with(producer: Any, bus: Settings, records: list[Record], **options: Any) -> None:
    for record in records:
        producer.send(bus.kafka.topic, record.value, record.key, record.headers, **options)
    producer.flush()
