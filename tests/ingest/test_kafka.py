"""Features of Apache Kafka only: retention, transactions, compression, growing topics, consumer groups."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaProducer
from kafka.structs import TopicPartition

from pipelines.bus.clients import admin_client
from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.drain import accept_loss, drain, drain_once, open_ingest
from pipelines.emit.producer import Record
from pipelines.errors import LostRecordsError
from pipelines.ingest.batch import OffsetRange
from pipelines.lake.checkpoints import checkpoints
from pipelines.lake.commit import CommitRecord, commit_batch
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import create_lake, open_lake
from pipelines.operate.lag.measure import measure_lag
from pipelines.settings import Settings
from tests.draining import assert_verified, contents, drain_all, drained, query, send, valid_records, with_ingest
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.jvm


@pytest.fixture
def bus(kafka: KafkaCluster, settings: Settings) -> Settings:
    """Return settings of Apache Kafka with a topic of one partition that does not exist yet."""
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 1}
    return with_ingest(settings.model_copy(update={"kafka": kafka.settings(**names)}), max_wait_seconds=0.5)


def test_retention_that_overtook_the_checkpoint_stops_ingest(bus: Settings) -> None:
    """The error names the place and number of lost records; nothing is committed (`nothing-lost`)."""
    _overtake(bus)
    before = contents(bus)
    with pytest.raises(LostRecordsError, match=rf"{bus.kafka.topic}-0@20: retention removed 15 .*--accept-loss"):
        drain_all(bus)
    assert contents(bus) == before


def test_an_accepted_loss_is_recorded(bus: Settings) -> None:
    """The loss is in the commits table, ingest continues at the log's start, and the offsets reconcile."""
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
    """On a complete log, read or unread, accept_loss commits nothing."""
    send(bus, valid_records(range(5)))
    with open_ingest(bus) as ingest:
        assert accept_loss(ingest) is None
        drain(ingest, lambda _: None)
        assert accept_loss(ingest) is None
    assert len(query(bus, "SELECT * FROM commits")) == 1


def test_a_log_shorter_than_the_checkpoint_stops_ingest(bus: Settings) -> None:
    """Once the loss is accepted, the log is read again from its start, and no event counts twice."""
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
    assert query(bus, "SELECT count(*) FROM dead_letters") == [(2,)], "once per read of the record"
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(21,)]
    assert_verified(bus)


def test_transactions_are_read_committed(bus: Settings) -> None:
    """Committed transactions are ingested; aborted and control records are gaps, and the offsets reconcile."""
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
    """Records of an open transaction are not read; the checkpoint stays before them."""
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


def test_an_open_transaction_holds_nothing_else_back(bus: Settings) -> None:
    """Beside it, in another topic partition, records are committed while more of them keep coming (`fresh`)."""
    kafka = bus.kafka.model_copy(update={"partitions": 2})
    two = with_ingest(bus.model_copy(update={"kafka": kafka}), linger_seconds=0.2)
    ensure_topic(two.kafka)
    committed = Event()

    def flow() -> bool:
        """Send until something is committed; return whether that was so before all was sent."""
        with closing(_producer(two, linger_ms=0)) as producer:
            return any(committed.is_set() or _send_one(producer, two, number) for number in range(5_000))

    with closing(_producer(two, transactional_id=uuid.uuid4().hex)) as producer, ThreadPoolExecutor(1) as pool:
        producer.init_transactions()
        producer.begin_transaction()
        _send_with(producer, two, valid_records(range(5_000, 5_010)), partition=0)
        with open_ingest(two) as ingest:
            flowing = pool.submit(flow)
            wait_for("a commit", lambda: drain_once(ingest))
            committed.set()
        assert flowing.result(PATIENCE_SECONDS)
        producer.abort_transaction()


def _send_one(producer: Any, bus: Settings, number: int) -> None:
    """Send a record to topic partition 1, and wait for the broker."""
    (record,) = valid_records([number])
    producer.send(bus.kafka.topic, record.value, record.key, partition=1).get(PATIENCE_SECONDS)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_each_compression_is_read(bus: Settings, compression: str) -> None:
    """With every codec all records are read, also if a checkpoint lies within a record batch."""
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
    """The bus time is the one that the broker returns, also with LogAppendTime."""
    kafka.create_topic(bus.kafka.topic, 1, message_timestamp_type="LogAppendTime")
    started = datetime.now(UTC)
    with closing(_producer(bus)) as producer:
        _send_with(producer, bus, valid_records(range(3)), timestamp_ms=1_000_000_000_000)
    drain_all(bus)
    (first, last) = query(bus, "SELECT min(bus_time), max(bus_time) FROM events")[0]
    assert started.timestamp() - 1 <= first.timestamp() <= last.timestamp() <= datetime.now(UTC).timestamp() + 1


def test_a_topic_that_grew_is_read_completely(bus: Settings, kafka: KafkaCluster) -> None:
    """New topic partitions are read from their start, also by an open ingest; moved keys count once."""
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
    """Lag tools see the checkpoints as the group's offsets; a wrong offset there has no effect."""
    send(bus, valid_records(range(20)))
    drain_all(bus)
    tp = TopicPartition(bus.kafka.topic, 0)
    with kafka.admin() as admin:
        offsets = admin.list_group_offsets([bus.kafka.group_id])[bus.kafka.group_id]
        assert offsets[tp].offset == 20
        admin.alter_group_offsets(bus.kafka.group_id, {tp: offsets[tp]._replace(offset=3)})
    send(bus, valid_records(range(20, 25)))
    record = drained(bus)
    assert (record.total("read"), record.total("accepted")) == (5, 5)


def test_nothing_but_control_records(bus: Settings) -> None:
    """After an aborted transaction with nothing after it, drain ends at the end of the log (`nothing-lost`)."""
    ensure_topic(bus.kafka)
    with closing(_producer(bus, transactional_id=uuid.uuid4().hex)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        _send_with(producer, bus, valid_records(range(5)))
        producer.abort_transaction()
    record = drained(bus)
    assert (record.total("read"), record.total("gaps")) == (0, 6)
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(6,)]
    assert drain_all(bus) == []
    assert measure_lag(bus).lag_records == 0
    assert_verified(bus)


def test_a_restart_under_a_new_identity(bus: Settings, tmp_path: Path) -> None:
    """With another group, host and folder, ingest continues at the lake's checkpoints, with all its events (`once`)."""
    bus = bus.model_copy(update={"lake": bus.lake.model_copy(update={"uri": str(tmp_path / "lake")})})
    send(bus, valid_records(range(20)))
    drain_all(bus)
    kafka = bus.kafka.model_copy(update={"group_id": f"{bus.kafka.group_id}-other"})
    other = bus.model_copy(update={"kafka": kafka, "data_dir": tmp_path / "another host"})
    assert drain_all(other) == []
    send(bus, valid_records(range(10, 30)))
    record = drained(other)
    assert [record.total(count) for count in ("read", "duplicates", "accepted")] == [20, 10, 10]
    assert drain_all(bus) == []
    assert_verified(bus)


def test_one_id_several_times_in_one_batch(bus: Settings) -> None:
    """The first is the event, an equal one a duplicate, another payload a conflict, all in one commit (`once`)."""
    send(bus, [*valid_records([1, 2, 1]), *valid_records([1], "Other"), *valid_records([1])])
    record = drained(bus)
    assert [record.total(count) for count in ("accepted", "duplicates", "conflicts")] == [2, 2, 1]
    assert query(bus, "SELECT event_id, action_type FROM events ORDER BY ALL") == [("e-1", "A"), ("e-2", "A")]
    assert_verified(bus)


def test_one_time_in_the_future(bus: Settings) -> None:
    """It is a dead letter, and no later event becomes late, also not of the same user (`not-blocked`)."""
    row = {"event_id": "f", "user_id": "u-1", "action_type": "A", "event_time": datetime(2099, 1, 1, tzinfo=UTC)}
    [value] = encode(pa.Table.from_pylist([row | {"metadata": []}], EVENT)).to_pylist()
    send(bus, [*valid_records(range(10)), Record(b"u-1", value), *valid_records(range(10, 20))])
    drain_all(bus)
    send(bus, valid_records(range(20, 30)))
    drain_all(bus)
    assert query(bus, "SELECT reason, decode(key) FROM dead_letters") == [("timestamp_too_late", "u-1")]
    assert query(bus, "SELECT count(*) FROM events") == [(30,)]
    assert_verified(bus)


def test_an_idle_topic_still_flushes(bus: Settings) -> None:
    """A single record is committed without waiting for a full batch (`fresh`)."""
    bus = with_ingest(bus, max_wait_seconds=0.5, linger_seconds=0.2, max_batch_records=1_000_000)
    ensure_topic(bus.kafka)
    with open_ingest(bus) as ingest:
        assert drain_once(ingest) is None
        send(bus, valid_records([1]))
        wait_for("the record to be committed", lambda: drain_once(ingest))
        assert query(bus, "SELECT event_id FROM events") == [("e-1",)]
        assert drain_once(ingest) is None


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
    """Move the checkpoint, to simulate a broker that lost records with its disk."""
    lake = create_lake(bus.lake_root)
    ((topic_id, _),) = checkpoints(take_snapshot(open_lake(bus.lake_root)).transactions)
    skipped = OffsetRange(topic_id, bus.kafka.topic, 0, start, end, gaps=end - start)
    commit_batch(lake, lake.table("events"), [], CommitRecord("gone", "test", datetime.now(UTC), (skipped,)))


def _producer(bus: Settings, **options: Any) -> Any:
    client: Any = KafkaProducer
    return client(**bus.kafka.client_config(), **options)


def _send_with(producer: Any, bus: Settings, records: list[Record], **options: Any) -> None:
    for record in records:
        producer.send(bus.kafka.topic, record.value, record.key, record.headers, **options)
    producer.flush()
