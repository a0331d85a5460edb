"""Faults of brokers, networks and disks, on real servers: each has a defined outcome, listed in docs/operations.md."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.structs import TopicPartition

from pipelines.bus.clients import consumer
from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.drain import Ingest, drain, drain_once, open_ingest
from pipelines.emit.producer import Record
from pipelines.errors import TransientError
from pipelines.lake.tables import create_lake
from pipelines.operate.audit import audit
from pipelines.operate.skip import skip
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started
from tests.draining import assert_verified, drain_all, elsewhere, query, send, send_to, valid_records, with_ingest
from tests.services.kafka_cluster import KafkaCluster
from tests.services.process import ended
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_crashes import environment

pytestmark = pytest.mark.jvm
_FILE_LIMIT_BYTES = 2_000


def _on(cluster: KafkaCluster, settings: Settings, **changes: object) -> Settings:
    real = cluster.settings(topic=settings.kafka.topic, group_id=settings.kafka.group_id, **changes)
    return with_ingest(settings.model_copy(update={"kafka": real}))


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[KafkaCluster]:
    """Return a broker for one test, which may damage its files."""
    require("kafka")
    folder = tmp_path / "kafka"
    folder.mkdir()
    with KafkaCluster(folder) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.usefixtures("broken_connections")
def test_the_leader_of_a_topic_partition_dies(settings: Settings, tmp_path: Path) -> None:
    """With three brokers, ingest continues with the next leader (`nothing-lost`, `once`)."""
    require("kafka")
    with KafkaCluster(tmp_path, brokers=3) as cluster:
        bus = _on(cluster, settings, partitions=1, replication_factor=3)
        ensure_topic(bus.kafka)
        send(bus, valid_records(range(20)))
        with open_ingest(bus) as ingest:
            drain(ingest, lambda _: None)
            topic = describe_topic(bus.kafka)
            assert topic
            cluster.kill(topic.partitions[0].leader)
            wait_for("another leader", lambda: _sent(bus, range(20, 40)))
            while drain_once(ingest) is None:
                pass
            drain(ingest, lambda _: None)
    assert query(bus, "SELECT count(*) FROM events") == [(40,)]
    assert_verified(bus)


@pytest.mark.usefixtures("broken_connections")
def test_a_network_that_is_slow_then_cut(settings: Settings, tmp_path: Path) -> None:
    """Delayed, throttled, then cut during a drain and healed: each event is in the lake once (`nothing-lost`)."""
    require("kafka")
    with KafkaCluster(tmp_path, proxied=True) as cluster:
        direct = _on(cluster, settings, partitions=2)
        for start in range(0, 4_000, 200):
            send(direct, valid_records(range(start, start + 200)))
        far = cluster.settings("PROXIED", topic=direct.kafka.topic, group_id=direct.kafka.group_id)
        bus = with_ingest(direct.model_copy(update={"kafka": far}), max_batch_records=200, max_wait_seconds=0.5)
        (proxy,) = cluster.proxies
        with open_ingest(bus) as ingest:
            proxy.delay(0.1)
            proxy.throttle(60_000)
            wait_for("a batch to come through", lambda: drain_once(ingest))
            proxy.cut()
            wait_for("the cut to be noticed", lambda: not _drains(ingest))
            assert _stored(bus) < 4_000
            proxy.heal()
            wait_for("the rest to be read", lambda: _drains(ingest) and _stored(bus) == 4_000)
        assert audit(direct).passed
    assert_verified(bus)


def _drains(ingest: Ingest) -> bool:
    try:
        drain_once(ingest)
    except TransientError:
        return False
    return True


def _stored(bus: Settings) -> int:
    return query(bus, "SELECT count(*) FROM events")[0][0]


def _sent(bus: Settings, numbers: range) -> bool:
    try:
        return send(bus, valid_records(numbers)) == len(numbers)
    except TransientError:
        return False


def test_a_batch_whose_bytes_changed_on_the_disk(own_broker: KafkaCluster, settings: Settings) -> None:
    """Its checksum is wrong: ingest stops before it and commits nothing of it (`nothing-lost`).

    If no replica has an intact copy, a skip makes the whole batch a dead letter.
    """
    bus = _on(own_broker, settings, partitions=1)
    send(bus, valid_records(range(5)))
    drain_all(bus)
    send(bus, valid_records(range(5, 10)))
    own_broker.damage(0, f"{bus.kafka.topic}-0")
    place = f"{bus.kafka.topic}-0@5"
    with pytest.raises(TransientError, match=rf"{place}: .*failed crc check.*karmalake skip"):
        drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(5,)]
    assert_verified(bus)
    send(bus, valid_records(range(10, 15)))
    assert str(skip(bus, place, "no replica has it").skipped) == f"{place}..10"
    drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(10,)]
    [(offset, reason, detail)] = query(bus, 'SELECT "offset", reason, detail FROM dead_letters')
    assert (offset, reason) == (9, "skipped")
    assert detail.startswith("Skipped: no replica has it The record batch at ")
    assert "fails its checksum" in detail
    assert_verified(bus)
    assert audit(bus).passed


def test_a_damaged_batch_stops_its_own_topic_partition(
    own_broker: KafkaCluster, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are drained first, new records included; then the error names the batch (`nothing-lost`)."""
    bus = _on(own_broker, settings, partitions=3)
    ensure_topic(bus.kafka)
    places = [f"{bus.kafka.topic}-{partition}" for partition in range(3)]
    for partition in range(3):
        send_to(bus, partition, range(partition * 100, partition * 100 + 50))
    own_broker.damage(0, places[1])
    few = with_ingest(bus, max_batch_records=10)
    for more in (range(400, 450), range(500, 550)):
        with pytest.raises(TransientError, match=rf"{places[1]}@\d+: .*failed crc check.*karmalake skip"):
            drain_all(few)
        send_to(bus, 2, more)
    stored = query(bus, "SELECT topic_partition, count(*) FROM events GROUP BY ALL ORDER BY ALL")
    assert stored == [(0, 50), (1, 49), (2, 100)]
    assert f"{places[1]}@" in caplog.text
    assert "its topic partition is paused, the others continue" in caplog.text
    assert_verified(bus)


@pytest.mark.slow
def test_a_compacted_topic(kafka: KafkaCluster, settings: Settings) -> None:
    """Removed records are gaps, the others are read, and the offsets reconcile (`nothing-lost`)."""
    bus = _on(kafka, settings, partitions=1)
    quickly = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.001", "max_compaction_lag_ms": "200"}
    kafka.create_topic(bus.kafka.topic, 1, cleanup_policy="compact", **quickly)

    def send_again_until_compacted() -> bool:
        send(bus, valid_records(range(14)))
        with consumer(bus.kafka, auto_offset_reset="earliest") as reader:
            place = TopicPartition(bus.kafka.topic, 0)
            reader.assign([place])
            (end,) = reader.end_offsets([place]).values()
            read = 0
            while reader.position(place) < end:
                read += sum(map(len, reader.poll(1_000).values()))
            return read < end

    wait_for("the broker to compact the topic", send_again_until_compacted)
    records = drain_all(bus)
    assert sum(offsets.gaps for record in records for offsets in record.ranges) > 0
    assert query(bus, "SELECT count(*) > 0 FROM events") == [(True,)]
    assert_verified(bus)
    assert audit(bus).passed


def test_records_at_the_limit_of_size(kafka: KafkaCluster, settings: Settings) -> None:
    """The largest record that the topic accepts is an event or, by its metadata, a dead letter; it blocks nothing."""
    bus = _on(kafka, settings, partitions=1)
    large = [Record(b"u", b"\x2a" + bytes([0xF0, 0xBB, 0x3C]) + b"x" * 990_000)]
    send(bus, [*valid_records(range(5)), *large, *valid_records(range(5, 10))])
    drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(10,)]
    assert query(bus, "SELECT octet_length(value) > 990000 FROM dead_letters") == [(True,)]
    assert_verified(bus)


def test_a_full_disk(kafka: KafkaCluster, settings: Settings) -> None:
    """A full disk ends the drain with an error message; with space again it continues (`atomic`)."""
    bus = _on(kafka, settings, partitions=1)
    send(bus, valid_records(range(2_000)))
    create_lake(bus.lake_root)

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT_BYTES, _FILE_LIMIT_BYTES))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = [sys.executable, "-B", *KARMALAKE, "drain"]
    done = subprocess.run(
        command,
        env=environment(bus),
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode in {74, 75}, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(2_000,)]
    assert_verified(bus)


def test_a_suspended_process_is_fenced(kafka: KafkaCluster, settings: Settings, tmp_path: Path) -> None:
    """Suspended while another process drains, it commits nothing twice afterwards (`fenced`)."""
    bus = with_ingest(_on(kafka, settings, partitions=1), max_batch_records=1)
    for start in range(0, 600, 20):
        send(bus, valid_records(range(start, start + 20)))
    create_lake(bus.lake_root)
    log = Path(bus.lake_root) / "events" / "_delta_log"
    started = Started([*KARMALAKE, "drain"], env=environment(bus), cwd=tmp_path, stderr=subprocess.PIPE)
    with ended(started) as sleeper:
        wait_for("its first commits", lambda: len(list(log.glob("*.json"))) > 3)
        os.kill(sleeper.pid, signal.SIGSTOP)
        drain_all(elsewhere(bus))
        os.kill(sleeper.pid, signal.SIGCONT)
        _, errors = sleeper.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in errors
    assert sleeper.returncode == 0 or "another ingester has moved the checkpoint" in errors
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(600, 600)]
    assert_verified(bus)
    assert audit(bus).passed
