"""A truncated log that grew again has other records at the same offsets (`nothing-lost`)."""

import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.structs import TopicPartition

from pipelines.bus.clients import admin_client
from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.drain import Ingest, accept_loss, drain, open_ingest
from pipelines.errors import LostRecordsError, TransientError
from pipelines.ingest.kafka import open_source
from pipelines.lake.checkpoints import last_record
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import open_lake
from pipelines.operate.audit import audit
from pipelines.settings import Settings
from tests.draining import assert_verified, contents, drain_all, query, valid_records, with_ingest
from tests.services.kafka_cluster import KafkaCluster
from tests.services.kafka_log import cut_log
from tests.services.waiting import wait_for

pytestmark = pytest.mark.jvm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaCluster, Path]]:
    """Return a broker whose logs a test may truncate, and its folder."""
    folder = tmp_path_factory.mktemp("cut")
    with KafkaCluster(folder) as started:
        yield started, folder


@pytest.fixture
def bus(cluster: tuple[KafkaCluster, Path], settings: Settings) -> Settings:
    """Return settings of a topic of one partition that does not exist yet."""
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 1}
    return with_ingest(settings.model_copy(update={"kafka": cluster[0].settings(**names)}), max_wait_seconds=0.5)


def test_a_log_that_lost_its_end_and_grew_again(cluster: tuple[KafkaCluster, Path], bus: Settings) -> None:
    """Ingest does not continue after an overwritten record; once the loss is accepted, every new record is read."""
    _put(bus, range(20))
    drain_all(bus)
    before = contents(bus)
    _cut(cluster, bus, 15)
    _put(bus, range(100, 110))
    for _ in range(2):
        with pytest.raises(LostRecordsError, match=rf"{bus.kafka.topic}-0@20: the record at offset 19 .*--accept-loss"):
            drain_all(bus)
    assert contents(bus) == before
    _accept(bus)
    assert _ids(bus) == {f"e-{n}" for n in (*range(20), *range(100, 110))}
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(25,)]
    assert drain_all(bus) == []
    assert_verified(bus)


@pytest.mark.usefixtures("broken_connections")
def test_an_open_ingest_under_which_the_log_is_cut(cluster: tuple[KafkaCluster, Path], bus: Settings) -> None:
    """Each drain raises LostRecordsError, and none skips a record."""
    _put(bus, range(20))
    with open_ingest(bus) as ingest:
        drain(ingest, lambda _: None)
        _cut(cluster, bus, 15)
        _put(bus, range(100, 110))
        wait_for("the client to find the broker again", lambda: _is_lost(ingest))
        for _ in range(3):
            with pytest.raises(LostRecordsError, match="-0@20: the record at offset 19 is not the one"):
                drain(ingest, lambda _: None)
        assert accept_loss(ingest) is not None
        drain(ingest, lambda _: None)
    assert _ids(bus) == {f"e-{n}" for n in (*range(20), *range(100, 110))}
    assert_verified(bus)


def test_the_audit_finds_an_overwritten_log(cluster: tuple[KafkaCluster, Path], bus: Settings) -> None:
    """Records at read offsets are lost if the lake has other events there and does not have theirs."""
    _put(bus, range(20))
    drain_all(bus)
    assert audit(bus).passed
    _cut(cluster, bus, 15)
    _put(bus, [100, 101, 3, 102, 103, 104])
    (found,) = audit(bus).partitions
    assert (found.accepted, found.duplicate_ids, found.lost, found.examples) == (15, 1, 4, [15, 16, 18, 19])
    _accept(bus)
    assert audit(bus).passed


def test_a_log_that_lost_its_end_and_has_not_grown(cluster: tuple[KafkaCluster, Path], bus: Settings) -> None:
    """A log that ends before the checkpoint is a loss, even if only the last record is missing."""
    _put(bus, range(20))
    drain_all(bus)
    _cut(cluster, bus, 19)
    with pytest.raises(LostRecordsError, match="-0@20: the log ends before the checkpoint"):
        drain_all(bus)


def test_only_the_topic_partition_that_was_cut_is_read_again(cluster: tuple[KafkaCluster, Path], bus: Settings) -> None:
    """The error names that one, and the others continue at their checkpoints."""
    bus = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"partitions": 3})})
    for partition in range(3):
        _put(bus, range(partition * 100, partition * 100 + 10), partition)
    drain_all(bus)
    _cut(cluster, bus, 5, partition=1)
    for partition in range(3):
        _put(bus, range(1000 + partition * 100, 1008 + partition * 100), partition)
    with pytest.raises(LostRecordsError) as raised:
        drain_all(bus)
    assert re.findall(r"-(\d)@(\d+):", str(raised.value)) == [("1", "10")]
    records = _accept(bus)
    assert sum(record.total("duplicates") for record in records) == 5
    assert len(_ids(bus)) == 3 * 10 + 3 * 8
    assert_verified(bus)


def test_a_log_that_ends_with_control_records(bus: Settings) -> None:
    """Control records after the last record are not a truncation: ingest continues after them."""
    ensure_topic(bus.kafka)
    for numbers, ends_well in ((range(5), True), (range(5, 8), False), (range(8, 12), True)):
        _transact(bus, numbers, ends_well)
        drain_all(bus)
    assert _last(bus).offset == 13
    assert query(bus, "SELECT next_offset FROM checkpoints") == [(15,)]
    _put(bus, [50])
    drain_all(bus)
    assert _ids(bus) == {f"e-{n}" for n in (*range(5), *range(8, 12), 50)}
    assert_verified(bus)


def test_a_last_record_that_retention_removed(bus: Settings) -> None:
    """A removed record is not compared: ingest continues."""
    _put(bus, range(10))
    drain_all(bus)
    with admin_client(bus.kafka) as admin:
        admin.delete_records({TopicPartition(bus.kafka.topic, 0): 10})
    wait_for("the records to be gone", lambda: _begin(bus) == 10)
    assert drain_all(bus) == []
    _put(bus, range(10, 13))
    drain_all(bus)
    assert len(_ids(bus)) == 13
    assert_verified(bus)


def test_a_last_record_that_compaction_removed(cluster: tuple[KafkaCluster, Path], bus: Settings) -> None:
    """A newer record of the same key replaced it: ingest continues after it."""
    configs = {"cleanup_policy": "compact", "segment_ms": "100", "min_cleanable_dirty_ratio": "0.01"}
    cluster[0].create_topic(bus.kafka.topic, 1, max_compaction_lag_ms="100", **configs)
    _put(bus, range(3))
    drain_all(bus)
    _put(bus, range(3, 6))

    def is_compacted() -> bool:
        _put(bus, [6])  # the next record closes a segment
        return bool(_first_offset(bus) > 2)

    wait_for("the first records to be compacted", is_compacted)
    drain_all(bus)
    assert {f"e-{n}" for n in range(3)} < _ids(bus)
    assert "e-6" in _ids(bus)


def test_a_lake_without_last_records_compares_nothing(cluster: tuple[KafkaCluster, Path], bus: Settings) -> None:
    """A lake without the last record read continues, and has it from then on."""
    _put(bus, range(5))
    drain_all(bus)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipelines.drain.last_record", lambda *_: None)
        _put(bus, range(5, 8))
        drain_all(bus)
    assert len(_ids(bus)) == 8
    assert _last(bus).offset == 7


def test_the_checkpoint_names_the_last_record(bus: Settings) -> None:
    """The commit has its offset, a digest and the leader epoch; an accepted loss clears them."""
    _put(bus, range(4))
    drain_all(bus)
    first = _last(bus)
    assert (first.offset, first.epoch) == (3, 0)
    _put(bus, [4])
    drain_all(bus)
    assert _last(bus).offset == 4
    assert _last(bus).digest != first.digest


def _is_lost(ingest: Ingest) -> bool:
    """Return whether a drain reports lost records; without a connection it raises TransientError."""
    try:
        drain(ingest, lambda _: None)
    except TransientError:
        return False
    except LostRecordsError:
        return True
    raise AssertionError("the drain did not report the loss")


def _put(bus: Settings, numbers: Iterable[int], partition: int = 0) -> None:
    """Send each record in a batch of its own."""
    ensure_topic(bus.kafka)
    with closing(_producer(bus)) as producer:
        for record in valid_records(numbers):
            producer.send(bus.kafka.topic, record.value, b"k", partition=partition).get(30)


def _transact(bus: Settings, numbers: Iterable[int], ends_well: bool) -> None:
    with closing(_producer(bus, transactional_id=uuid.uuid4().hex)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        for record in valid_records(numbers):
            producer.send(bus.kafka.topic, record.value, record.key)
        producer.flush()
        (producer.commit_transaction if ends_well else producer.abort_transaction)()


def _producer(bus: Settings, **options: Any) -> Any:
    client: Any = KafkaProducer
    return client(**bus.kafka.client_config(), linger_ms=0, **options)


def _cut(cluster: tuple[KafkaCluster, Path], bus: Settings, batches: int, partition: int = 0) -> None:
    broker, folder = cluster
    cut_log(broker, folder, bus.kafka, batches, partition)


def _accept(bus: Settings) -> list[CommitRecord]:
    records: list[CommitRecord] = []
    with open_ingest(bus) as ingest:
        accepted = accept_loss(ingest)
        assert accepted is not None
        assert [str(loss).rpartition("..")[2] for loss in accepted.ranges] == ["0"]
        drain(ingest, records.append)
    return records


def _ids(bus: Settings) -> set[str]:
    rows = query(bus, "SELECT event_id FROM events")
    assert len(rows) == len(set(rows))
    return {event_id for (event_id,) in rows}


def _last(bus: Settings) -> Any:
    topic = ensure_topic(bus.kafka)
    return last_record(open_lake(bus.lake_root).table("events"), topic.topic_id, 0)


def _begin(bus: Settings) -> int:
    topic = describe_topic(bus.kafka)
    assert topic is not None
    return topic.partitions[0].begin_offset


def _first_offset(bus: Settings) -> int:
    with open_source(bus) as source:
        found = source.read(lambda *_: None)
    if found is None:  # nothing came in time
        return 0
    (polled,) = found[0].values()
    return polled.records["offset"][0].as_py()
