"""How far the lake is behind: what a measurement says, what two say of the pace, and that history is kept, bounded."""

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
from pipelines.monitoring.metrics import StreamMetrics
from pipelines.operate.doctor import examine
from pipelines.operate.lag.history import keep, recent
from pipelines.operate.lag.measure import Lag, Pace, Work, catch_up_seconds, first_bus_times, measure_lag, paces
from pipelines.operate.lag.watch import observe_lag
from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.operate.lag.measurements import START, measurement, partition
from tests.services.kafka_cluster import KafkaCluster


def test_lag_is_what_was_sent_and_not_drained(settings: Settings) -> None:
    """Before the first commit everything is behind, by its age on the bus; after a drain nothing is."""
    began = datetime.now(UTC)
    send(settings, valid_records(range(50)))
    behind = measure_lag(settings)
    elapsed = (datetime.now(UTC) - began).total_seconds()
    assert behind.lag_records == 50
    assert {p.next_offset for p in behind.partitions} == {None}
    assert all(0 < p.lag_seconds <= elapsed for p in behind.partitions if p.lag_records)
    drain_all(with_ingest(settings))
    current = measure_lag(settings)
    assert (current.lag_records, current.lag_seconds) == (0, 0.0)
    assert [p.next_offset for p in current.partitions if p.end_offset] == [
        p.end_offset for p in behind.partitions if p.end_offset
    ]


def test_without_a_topic_there_is_no_lag(settings: Settings) -> None:
    """The mistake gets a sentence."""
    with pytest.raises(UsageError, match="does not exist"):
        measure_lag(settings)


@pytest.mark.jvm
def test_lag_is_what_kafkas_own_tools_say(kafka: KafkaCluster, settings: Settings) -> None:
    """Ends and checkpoints are those of the admin client: of its list of offsets, and of the consumer group."""
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
    """Where only the marker of a transaction lies behind, a measurement comes to an end all the same."""
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
    """Send a record of each time, as a producer writes it, to topic partition 0."""
    create: Any = KafkaProducer
    with closing(create(**settings.kafka.client_config())) as producer:
        for time_ms in times_ms:
            producer.send(settings.kafka.topic, b"v", b"k", partition=0, timestamp_ms=time_ms).get(10)


@pytest.fixture
def hostile(kafka: KafkaCluster, settings: Settings) -> Settings:
    """Return settings of a topic that takes any time of a record."""
    topic = kafka.new_topic(**{"message.timestamp.after.max.ms": str(2**63 - 1), "retention.ms": "-1"})
    return settings.model_copy(update={"kafka": kafka.settings(topic=topic)})


@pytest.mark.jvm
@pytest.mark.parametrize(
    "time_ms",
    [0, NOW_MS * 1_000, NOW_MS * 1_000_000, 253_402_300_799_000, NOW_MS + 10**11],
    ids=["none", "microseconds", "nanoseconds", "the year 9999", "three years ahead"],
)
def test_a_record_without_a_valid_time_has_the_age_of_the_next(hostile: Settings, time_ms: int) -> None:
    """A time in another unit, unset or years ahead is no age: neither a traceback, nor a lag of none or of decades."""
    send_at(hostile, time_ms)
    alone = measure_lag(hostile)
    assert (alone.lag_records, alone.lag_seconds) == (1, None)
    assert alone.behind == "1 records and an unknown time (records without a valid time)"
    send_at(hostile, NOW_MS - 3_600_000)
    assert 3_600 <= (measure_lag(hostile).lag_seconds or 0) < 7_200


@pytest.mark.jvm
@pytest.mark.parametrize("time_ms", [0, NOW_MS * 1_000], ids=["none", "microseconds"])
def test_what_is_made_of_a_lag_of_unknown_age(hostile: Settings, time_ms: int) -> None:
    """It is observed, kept and read back, advised on, shown as a metric and told by doctor."""
    send_at(hostile, time_ms)
    observe_lag(hostile)
    observation = observe_lag(hostile)
    kept = recent(hostile.lag_dir, observation.measurement.topic_id, datetime.now(UTC) - timedelta(minutes=1))
    assert [one.lag_seconds for one in kept] == [None, None]
    metrics = StreamMetrics()
    metrics.observed(observation)
    shown = metrics.book.registry.get_sample_value("karmalake_lag_seconds", {"topic_partition": "0"})
    assert shown is not None
    assert math.isnan(shown)
    (said,) = [finding.sentence for finding in examine(hostile) if finding.subject == "lag"]
    assert said == "1 records and an unknown time (records without a valid time) behind the bus"


def test_one_of_unknown_age_hides_no_other() -> None:
    """The age that is known is a lower bound; where only current ones are known, it is not."""
    known, current, unknown = partition(0, 9, 0, seconds=5.0), partition(1, 9, 9), Lag(2, 0, 9, 0, 9, None)
    assert measurement(known, current, unknown).lag_seconds == 5.0
    assert measurement(current, unknown).lag_seconds is None
    assert measurement(current).lag_seconds == 0.0


def test_the_pace_comes_from_two_measurements() -> None:
    """What came and what went by the second, and how long the rest takes at that."""
    earlier = measurement(partition(0, 100, 100), partition(1, 100, 40), partition(2, 100, None))
    later = measurement(partition(0, 200, 200), partition(1, 150, 120), partition(2, 110, None), after=10)
    assert paces(earlier, later) == {
        0: Pace(0, 10.0, 10.0, 0.0),
        1: Pace(1, 5.0, 8.0, 10.0),
        2: Pace(2, 1.0, 0.0, None),
    }


def test_no_pace_across_topics_or_without_time_in_between() -> None:
    """Another topic of the same name has other offsets; a topic partition that is new has no pace yet."""
    earlier = measurement(partition(0, 100, 0))
    assert paces(earlier, measurement(partition(0, 5, 0), after=10, topic_id="another")) == {}
    assert paces(earlier, earlier) == {}
    assert paces(earlier, measurement(partition(0, 100, 0), partition(1, 5, None), after=1)).keys() == {0}


@pytest.mark.parametrize(
    ("lag_records", "came", "went", "seconds"),
    [(0, 5.0, 0.0, 0.0), (100, 0.0, 10.0, 10.0), (100, 10.0, 10.0, None), (100, 20.0, 10.0, None)],
)
def test_time_to_catch_up(lag_records: int, came: float, went: float, seconds: float | None) -> None:
    """What is gained on the bus by the second eats what lies behind; where nothing is gained it never ends."""
    assert catch_up_seconds(lag_records, came, went) == seconds


def test_history_keeps_every_measurement(tmp_path: Path) -> None:
    """What is kept is read back as it was, the oldest first; of another topic, or from before, nothing is."""
    today = datetime.now(UTC) - timedelta(seconds=100)
    kept = [
        measurement(
            partition(0, 10 * number, number, seconds=1.5), after=number, work=Work(1, 10, 10, 0.5, 0.25), start=today
        )
        for number in range(5)
    ]
    for one in [*kept, measurement(topic_id="another", after=9, start=today)]:
        keep(tmp_path, one, keep_days=3)
    assert recent(tmp_path, "id", today) == kept
    assert recent(tmp_path, "id", today + timedelta(seconds=2)) == kept[2:]


def test_history_goes_over_midnight(tmp_path: Path) -> None:
    """A file a UTC day, and readers see both."""
    midnight = datetime.combine(datetime.now(UTC), datetime.min.time(), UTC)
    kept = [measurement(after=seconds, start=midnight) for seconds in (-1, 1)]
    for one in kept:
        keep(tmp_path, one, keep_days=3)
    assert len(list(tmp_path.iterdir())) == 2
    assert recent(tmp_path, "id", midnight - timedelta(hours=1)) == kept


def test_history_is_bounded(tmp_path: Path) -> None:
    """Days that are too old are deleted, and no other file is."""
    (tmp_path / "notes.txt").touch()
    for day in range(6):
        keep(tmp_path, measurement(after=day * 86_400), keep_days=2)
    days = [f"{START + timedelta(days=day):%Y-%m-%d}.jsonl" for day in (3, 4, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*days, "notes.txt"]


def test_history_that_cannot_be_written_is_an_outage(tmp_path: Path) -> None:
    """A full disk, or a file where the folder is to be: it is said where, and whoever measures goes on."""
    (tmp_path / "lag").touch()
    with pytest.raises(TransientError, match=r"history of lag at .*/lag/2026-03-01.jsonl cannot be written"):
        keep(tmp_path / "lag", measurement(), keep_days=1)


def test_a_line_cut_off_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    """Readers pass over it, and what is kept afterwards is read, but for what landed in the same line."""
    now = datetime.now(UTC) - timedelta(seconds=100)
    first, second, third = (measurement(partition(0, number, 0), after=number, start=now) for number in range(3))
    keep(tmp_path, first, keep_days=1)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + path.read_bytes()[:30])
    keep(tmp_path, second, keep_days=1)
    keep(tmp_path, third, keep_days=1)
    assert recent(tmp_path, "id", now) == [first, third]


def test_history_is_open_to_sql(tmp_path: Path) -> None:
    """The query that docs/metrics.md shows gives a row a measurement, also where a crash cut off a line."""
    keep(tmp_path, measurement(partition(0, 10, 4, seconds=3.0), partition(1, 20, 20)), keep_days=1)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + path.read_bytes()[:30])
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    [sql] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    with duckdb.connect() as connection:
        rows = connection.execute(sql.replace("data/lag", str(tmp_path))).fetchall()
    assert [row[1:] for row in rows] == [(6, 3.0)]
