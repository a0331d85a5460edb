"""Consumer lag: measurements, the pace between two, and their bounded history."""

import math
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from kafka import KafkaProducer
from kafka.structs import TopicPartition

from pipelines.errors import TransientError, UsageError
from pipelines.lake.tables import is_lake
from pipelines.monitoring.metrics import StreamMetrics
from pipelines.operate.doctor import diagnose
from pipelines.operate.lag.history import append, recent
from pipelines.operate.lag.measure import Lag, Pace, Work, catch_up_seconds, first_bus_times, measure_lag, paces
from pipelines.operate.lag.observe import observe_lags
from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.operate.lag.measurements import START, measurement, partition
from tests.services.kafka_cluster import KafkaCluster


def test_lag_counts_undrained_records(settings: Settings) -> None:
    """Before the first commit all records count, with their age on the bus; after a drain none."""
    began = datetime.now(UTC)
    send(settings, valid_records(range(50)))
    before = measure_lag(settings)
    elapsed = (datetime.now(UTC) - began).total_seconds()
    assert before.lag_records == 50
    assert not is_lake(settings.lake_root)
    assert {p.next_offset for p in before.partitions} == {None}
    assert all(0 < p.lag_seconds <= elapsed for p in before.partitions if p.lag_records)
    drain_all(with_ingest(settings))
    current = measure_lag(settings)
    assert (current.lag_records, current.lag_seconds) == (0, 0.0)
    assert [p.next_offset for p in current.partitions if p.end_offset] == [
        p.end_offset for p in before.partitions if p.end_offset
    ]


def test_without_a_topic_there_is_no_lag(settings: Settings) -> None:
    """A missing topic is a usage error."""
    with pytest.raises(UsageError, match="does not exist"):
        measure_lag(settings)


@pytest.mark.jvm
def test_lag_agrees_with_kafkas_own_tools(kafka: KafkaCluster, settings: Settings) -> None:
    """End offsets and checkpoints equal those of the admin client and the consumer group."""
    bus = with_ingest(
        settings.model_copy(
            update={"kafka": kafka.settings(topic=settings.kafka.topic, group_id=settings.kafka.group_id, partitions=3)}
        ),
        max_wait_seconds=0.5,
    )
    send(bus, valid_records(range(60)))
    drain_all(bus)
    send(bus, valid_records(range(60, 100)))
    measured = measure_lag(bus)
    with kafka.admin() as admin:
        committed = admin.list_group_offsets({bus.kafka.group_id: None})[bus.kafka.group_id]
        ends = admin.list_partition_offsets({TopicPartition(bus.kafka.topic, number): -1 for number in range(3)})
    read = {place.partition: at.offset for place, at in committed.items()}
    assert len(read) > 1
    assert {p.topic_partition: p.next_offset for p in measured.partitions if p.next_offset is not None} == read
    assert {p.topic_partition: p.end_offset for p in measured.partitions} == {
        place.partition: end.offset for place, end in ends.items()
    }
    assert {p.topic_partition: p.lag_records for p in measured.partitions} == {
        place.partition: end.offset - read.get(place.partition, 0) for place, end in ends.items()
    }
    assert measured.lag_records == 40
    assert measured.lag_seconds > 0


@pytest.mark.jvm
def test_control_records_have_no_age(kafka: KafkaCluster, settings: Settings) -> None:
    """A measurement terminates also if only a transaction marker is unread."""
    topic = kafka.new_topic()
    bus = with_ingest(settings.model_copy(update={"kafka": kafka.settings(topic=topic)}))
    create: Any = KafkaProducer
    with closing(create(**bus.kafka.client_config(), transactional_id=topic)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, key=b"u", value=b"\xff")
        producer.commit_transaction()
    assert first_bus_times(bus.kafka, {0: 0}).keys() == {0}
    assert first_bus_times(bus.kafka, {0: 1}) == {}


NOW_MS = 1_000 * int(datetime.now(UTC).timestamp())


def send_at(settings: Settings, *times_ms: int) -> None:
    """Send one record with each time to topic partition 0."""
    create: Any = KafkaProducer
    with closing(create(**settings.kafka.client_config())) as producer:
        for time_ms in times_ms:
            producer.send(settings.kafka.topic, b"v", b"k", partition=0, timestamp_ms=time_ms).get(10)


@pytest.fixture
def hostile(kafka: KafkaCluster, settings: Settings) -> Settings:
    """Return settings of a topic that accepts any record time."""
    topic = kafka.new_topic(**{"message.timestamp.after.max.ms": str(2**63 - 1), "retention.ms": "-1"})
    return settings.model_copy(update={"kafka": kafka.settings(topic=topic)})


@pytest.mark.jvm
@pytest.mark.parametrize(
    "time_ms",
    [0, NOW_MS * 1_000, NOW_MS * 1_000_000, 253_402_300_799_000, NOW_MS + 10**11],
    ids=["none", "microseconds", "nanoseconds", "the year 9999", "three years ahead"],
)
def test_a_record_without_a_valid_time_has_the_age_of_the_next(hostile: Settings, time_ms: int) -> None:
    """A time in another unit, unset or years ahead causes neither a traceback nor a lag of zero or decades."""
    send_at(hostile, time_ms)
    first = measure_lag(hostile)
    assert (first.lag_records, first.lag_seconds) == (1, None)
    assert first.summary == "1 record and an unknown time (records without a valid time)"
    send_at(hostile, NOW_MS - 3_600_000)
    assert 3_600 <= (measure_lag(hostile).lag_seconds or 0) < 7_200


@pytest.mark.jvm
@pytest.mark.parametrize("time_ms", [0, NOW_MS * 1_000], ids=["none", "microseconds"])
def test_lag_of_unknown_age_is_handled_everywhere(hostile: Settings, time_ms: int) -> None:
    """It is observed, stored and read back, advised on, exported as a metric and reported by doctor."""
    send_at(hostile, time_ms)
    observe_lags(hostile)
    [observation] = observe_lags(hostile)
    recorded = recent(hostile.lag_dir, observation.measurement.topic_id, datetime.now(UTC) - timedelta(minutes=1))
    assert [one.lag_seconds for one in recorded] == [None, None]
    metrics = StreamMetrics()
    metrics.observed([observation])
    place = {"topic": hostile.kafka.topic, "topic_partition": "0"}
    shown = metrics.registry.collectors.get_sample_value("karmalake_lag_seconds", place)
    assert shown is not None
    assert math.isnan(shown)
    (message,) = [finding.message for finding in diagnose(hostile) if finding.subject == "lag"]
    assert message == "1 record and an unknown time (records without a valid time) behind the bus"


def test_unknown_age_does_not_hide_known_ones() -> None:
    """A known age is a lower bound; if all known partitions are current, the age is unknown."""
    known, current, unknown = partition(0, 9, 0, seconds=5.0), partition(1, 9, 9), Lag(2, 0, 9, 0, 9, None)
    assert measurement(known, current, unknown).lag_seconds == 5.0
    assert measurement(current, unknown).lag_seconds is None
    assert measurement(current).lag_seconds == 0.0


def test_the_pace_comes_from_two_measurements() -> None:
    """Incoming and outgoing records per second, and the time to catch up."""
    earlier = measurement(partition(0, 100, 100), partition(1, 100, 40), partition(2, 100, None))
    later = measurement(partition(0, 200, 200), partition(1, 150, 120), partition(2, 110, None), after=10)
    assert paces(earlier, later) == {
        0: Pace(0, 10.0, 10.0, 0.0),
        1: Pace(1, 5.0, 8.0, 10.0),
        2: Pace(2, 1.0, 0.0, None),
    }


def test_no_pace_across_topics_or_without_time_in_between() -> None:
    """A recreated topic has other offsets; a new topic partition has no pace yet."""
    earlier = measurement(partition(0, 100, 0))
    assert paces(earlier, measurement(partition(0, 5, 0), after=10, topic_id="another")) == {}
    assert paces(earlier, earlier) == {}
    assert paces(earlier, measurement(partition(0, 100, 0), partition(1, 5, None), after=1)).keys() == {0}


@pytest.mark.parametrize(
    ("lag_records", "incoming", "outgoing", "seconds"),
    [(0, 5.0, 0.0, 0.0), (100, 0.0, 10.0, 10.0), (100, 10.0, 10.0, None), (100, 20.0, 10.0, None)],
)
def test_time_to_catch_up(lag_records: int, incoming: float, outgoing: float, seconds: float | None) -> None:
    """The lag divided by the net rate; None if the net rate is not positive."""
    assert catch_up_seconds(lag_records, incoming, outgoing) == seconds


def test_history_keeps_every_measurement(tmp_path: Path) -> None:
    """Measurements are read back unchanged, the oldest first, without other topics or older ones."""
    today = datetime.now(UTC) - timedelta(seconds=100)
    recorded = [
        measurement(
            partition(0, 10 * number, number, seconds=1.5), after=number, work=Work(1, 10, 10, 0.5, 0.25), start=today
        )
        for number in range(5)
    ]
    for one in [*recorded, measurement(topic_id="another", after=9, start=today)]:
        append(tmp_path, one, keep_days=3)
    assert recent(tmp_path, "id", today) == recorded
    assert recent(tmp_path, "id", today + timedelta(seconds=2)) == recorded[2:]


def test_history_spans_midnight(tmp_path: Path) -> None:
    """One file per UTC day; readers see both."""
    midnight = datetime.combine(datetime.now(UTC), datetime.min.time(), UTC)
    recorded = [measurement(after=seconds, start=midnight) for seconds in (-1, 1)]
    for one in recorded:
        append(tmp_path, one, keep_days=3)
    assert len(list(tmp_path.iterdir())) == 2
    assert recent(tmp_path, "id", midnight - timedelta(hours=1)) == recorded


def test_history_is_bounded(tmp_path: Path) -> None:
    """Files of days that are too old are deleted, and no other file."""
    (tmp_path / "notes.txt").touch()
    for day in range(6):
        append(tmp_path, measurement(after=day * 86_400), keep_days=2)
    days = [f"{START + timedelta(days=day):%Y-%m-%d}.jsonl" for day in (3, 4, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*days, "notes.txt"]


def test_an_unwritable_history_is_an_outage(tmp_path: Path) -> None:
    """A full disk, or a file in place of the folder, is a transient error that names the path."""
    (tmp_path / "lag").touch()
    with pytest.raises(TransientError, match=r"history of lag at .*/lag/2026-03-01.jsonl cannot be written"):
        append(tmp_path / "lag", measurement(), keep_days=1)


def test_a_truncated_line_affects_no_other(tmp_path: Path) -> None:
    """Readers skip it, and read later measurements, except one on the same line."""
    now = datetime.now(UTC) - timedelta(seconds=100)
    first, second, third = (measurement(partition(0, number, 0), after=number, start=now) for number in range(3))
    append(tmp_path, first, keep_days=1)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + path.read_bytes()[:30])
    append(tmp_path, second, keep_days=1)
    append(tmp_path, third, keep_days=1)
    assert recent(tmp_path, "id", now) == [first, third]


def test_history_is_readable_by_sql(tmp_path: Path) -> None:
    """The query in docs/metrics.md returns one row per measurement, also with a truncated line."""
    append(tmp_path, measurement(partition(0, 10, 4, seconds=3.0), partition(1, 20, 20)), keep_days=1)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + path.read_bytes()[:30])
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    [sql] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    with duckdb.connect() as connection:
        rows = connection.execute(sql.replace("data/lag", str(tmp_path))).fetchall()
    assert [row[1:] for row in rows] == [(6, 3.0)]
