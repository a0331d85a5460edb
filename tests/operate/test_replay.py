"""Replay: reading any range again changes nothing; into a fresh lake, it shows differences."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from kafka import KafkaProducer

from pipelines.emit.producer import Record
from pipelines.errors import UsageError
from pipelines.lake.commit import CommitRecord
from pipelines.operate.audit import audit
from pipelines.operate.replay import Comparison, compare, fresh, open_replay, replay
from pipelines.settings import Settings
from tests.draining import assert_verified, contents, drain_all, query, send, valid_records, with_ingest
from tests.services.kafka_cluster import KafkaCluster


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of small batches and a lake that holds 200 events, 20 of them sent twice, and 5 dead letters."""
    return _drained(with_ingest(settings, max_batch_records=40))


def _drained(bus: Settings) -> Settings:
    send(bus, [*valid_records(range(200)), *valid_records(range(20)), *[Record(b"u", b"\xff")] * 5])
    drain_all(bus)
    return bus


def _replay(bus: Settings, start: object = None, until: datetime | None = None, target: Settings | None = None) -> list:
    records: list[CommitRecord] = []
    with open_replay(bus, start, until) as replayed:  # type: ignore[arg-type]
        replay(replayed, target or bus, records.append)
    return records


def _total(records: list[CommitRecord], name: str) -> int:
    return sum(record.total(name) for record in records)


def test_replaying_everything_changes_nothing(bus: Settings) -> None:
    """All records become duplicates or dead letters, and ingest continues at its checkpoint (`once`)."""
    before = contents(bus)
    for _ in range(2):
        records = _replay(bus)
        assert (_total(records, "read"), _total(records, "duplicates"), _total(records, "dead_letters")) == (
            225,
            220,
            5,
        )
    after = contents(bus)
    assert after["events"] == before["events"]
    assert [row for row in after["checkpoints"] if not row[0].startswith("replay-")] == before["checkpoints"]
    assert drain_all(bus) == []
    assert_verified(bus)
    assert audit(bus).passed


def test_replay_restores_lost_events(bus: Settings) -> None:
    """Rows deleted from the lake are accepted again, under the topic name of the replay (`nothing-lost`)."""
    DeltaTable(Path(bus.lake_root) / "events").delete("user_id = 'u-3'")
    for slot in bus.index_dir.glob("slot-*/*"):
        slot.unlink()
    lost = 200 - query(bus, "SELECT count(*) FROM events")[0][0]
    assert lost > 0
    assert _total(_replay(bus), "accepted") == lost
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(200, 200)]
    assert query(bus, "SELECT count(*) FROM events WHERE topic LIKE 'replay:%'") == [(lost,)]


def test_replay_from_an_offset(bus: Settings) -> None:
    """Only that topic partition is read, from that offset to the end."""
    ((partition, last),) = query(
        bus, 'SELECT topic_partition, max("offset") FROM events GROUP BY ALL ORDER BY max("offset") DESC LIMIT 1'
    )
    records = _replay(bus, {partition: last - 3})
    (first,) = {place.start_offset for record in records[:1] for place in record.ranges}
    assert first == last - 3
    assert {place.topic_partition for record in records for place in record.ranges} == {partition}


@pytest.mark.parametrize(
    ("start", "message"), [({77: 0}, "has no topic partition 77"), ({0: 10_000}, "10000 is outside of them")]
)
def test_offsets_outside_the_log_are_refused(bus: Settings, start: dict[int, int], message: str) -> None:
    """The message names the invalid partition or offset, and the valid ones."""
    with pytest.raises(UsageError, match=message):
        _replay(bus, start)


def test_swapped_times_are_refused(bus: Settings) -> None:
    """The message says that the times are swapped, rather than that the topic has nothing."""
    now = datetime.now(UTC)
    with pytest.raises(UsageError, match="is not before its end"):
        _replay(bus, now, now - timedelta(days=1))


def test_comparison_with_a_fresh_lake(bus: Settings, tmp_path: Path) -> None:
    """It reports no difference, or events that the lake lost, changed or invented."""
    twin = fresh(bus, tmp_path / "twin")
    with open_replay(bus, None, None) as replayed:
        replay(replayed, twin, lambda _: None)
        assert compare(bus, twin, replayed) == Comparison(200, 0, 0, 0, ())
        events = DeltaTable(Path(bus.lake_root) / "events")
        events.delete("event_id IN ('e-1', 'e-2')")
        events.update(predicate="event_id = 'e-3'", updates={"action_type": "'Forged'"})
        events.update(predicate="event_id = 'e-4'", updates={"event_id": "'made-up'"})
        found = compare(bus, twin, replayed)
    assert found == Comparison(196, 1, 3, 1, ("e-1", "e-2", "e-3", "e-4", "made-up"))
    with pytest.raises(UsageError, match="is not empty"):
        fresh(bus, tmp_path / "twin")


@pytest.mark.jvm
def test_replay_between_two_times(kafka: KafkaCluster, settings: Settings) -> None:
    """On Apache Kafka, only records within the period by bus time are read; an empty period is refused."""
    bus = with_ingest(settings.model_copy(update={"kafka": kafka.settings(topic=settings.kafka.topic)}))
    start = datetime.now(UTC)
    for part in range(3):
        _send_at(bus, valid_records(range(part * 10, part * 10 + 10)), start + timedelta(minutes=part))
    drain_all(bus)
    records = _replay(bus, start + timedelta(seconds=30), start + timedelta(seconds=90))
    assert (_total(records, "read"), _total(records, "duplicates")) == (10, 10)
    with pytest.raises(UsageError, match="nothing to replay"):
        _replay(bus, start + timedelta(hours=1))


def _send_at(bus: Settings, records: list[Record], moment: datetime) -> None:
    send(bus, [])
    producer = KafkaProducer(**bus.kafka.client_config())
    for record in records:
        producer.send(bus.kafka.topic, record.value, record.key, timestamp_ms=int(moment.timestamp() * 1000))
    producer.close()
