"""Several ingesters on one topic of Apache Kafka: the group assigns partitions, the lake decides what counts."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.structs import MemberState

from pipelines.bus.topics import ensure_topic
from pipelines.drain import drain, drain_once, open_ingest
from pipelines.emit.producer import Record
from pipelines.ingest import group as group_module
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import create_lake, open_lake
from pipelines.operate.audit import audit
from pipelines.serving.read import published
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started
from tests.draining import assert_verified, query, send, valid_records, with_ingest
from tests.rides import ride, rides_topic, to_rides, with_rides
from tests.services.kafka_cluster import KafkaCluster
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_crashes import environment

pytestmark = pytest.mark.jvm
_PARTITIONS = 3
_RUNNING: "list[Future[None]]" = []


@pytest.fixture
def bus(kafka: KafkaCluster, settings: Settings) -> Settings:
    """Return settings of several ingesters with small batches, an empty lake and a topic."""
    topic, group_id = settings.kafka.topic, settings.kafka.group_id
    real = kafka.settings(topic=topic, group_id=group_id, partitions=_PARTITIONS)
    bus = settings.model_copy(update={"kafka": real})
    ensure_topic(bus.kafka)
    create_lake(bus.lake_root)
    return with_ingest(bus, share_partitions=True, max_batch_records=50)


@contextmanager
def _ingesting(bus: Settings) -> Iterator[list[CommitRecord]]:
    """Ingest in a thread until the end of the block; yield its commits. An error of the thread ends the block, too."""
    records: list[CommitRecord] = []
    stopping = threading.Event()

    def run() -> None:
        with open_ingest(bus) as ingest:
            while not stopping.is_set():
                if record := drain_once(ingest):
                    records.append(record)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run)
        _RUNNING.append(running)
        try:
            yield records
        finally:
            _RUNNING.remove(running)
            stopping.set()
            running.result(PATIENCE_SECONDS)


def _records(numbers: range) -> list[Record]:
    """Return events for every topic partition in turn."""
    return [
        record._replace(topic_partition=n % _PARTITIONS)
        for n, record in zip(numbers, valid_records(numbers), strict=True)
    ]


def _partitions(records: list[CommitRecord]) -> set[int]:
    return {place.topic_partition for record in records for place in record.ranges}


def _stored(bus: Settings) -> int:
    for running in _RUNNING:
        assert not running.done() or running.result(), "an ingester ended"
    return query(bus, "SELECT count(*) FROM events")[0][0]


def test_two_divide_the_partitions_and_one_takes_over(bus: Settings) -> None:
    """Both commit different partitions; when one leaves, the other gets all; each event counts once (`once`)."""
    count = 0
    with _ingesting(bus) as first:
        with _ingesting(bus) as second:
            while not (first and second):
                send(bus, [*_records(range(count, count + 200)), *_records(range(count, count + 50))])
                count += 200
                wait_for("what was sent to be stored", lambda count=count: _stored(bus) == count)
        before = len(first)
        send(bus, _records(range(count, count + 400)))
        wait_for("the other's partitions to be taken over", lambda: _stored(bus) == count + 400)
    assert _partitions(first[before:]) == set(range(_PARTITIONS))
    assert_verified(bus)
    assert audit(bus).passed


def test_two_topics_are_divided_and_taken_over(bus: Settings, tmp_path: Path) -> None:
    """The group subscribes to both; each event and each checkpoint is of its own topic (`once`, `fenced`)."""
    both, of_rides, count = with_rides(bus, tmp_path / "sources"), to_rides(bus), 0
    ensure_topic(of_rides.kafka)
    with _ingesting(both) as first:
        with _ingesting(both) as second:
            while not (first and second):
                send(bus, _records(range(count, count + 60)))
                send(of_rides, [ride(n, "driven")._replace(topic_partition=n % _PARTITIONS) for n in range(60)])
                count += 60
                wait_for("what was sent to be stored", lambda count=count: _stored(both) == 2 * count)
        before = len(first)
        send(bus, _records(range(count, count + 60)))
        send(of_rides, [ride(n, "driven")._replace(topic_partition=n % _PARTITIONS) for n in range(60)])
        wait_for("the other's partitions to be taken over", lambda: _stored(both) == 2 * (count + 60))
    taken = {(place.topic, place.topic_partition) for record in first[before:] for place in record.ranges}
    assert taken == {(topic, n) for topic in (bus.kafka.topic, rides_topic(bus)) for n in range(_PARTITIONS)}
    assert_verified(both)
    assert audit(both).passed


def test_a_rebalance_between_two_polls(kafka: KafkaCluster, bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic grows, and polls end during the assignment: the client stays a member (`poll_group_member`)."""
    monkeypatch.setattr(group_module, "_METADATA_MS", 500)
    divide = ConsumerCoordinator._perform_assignment

    def divide_slowly(*arguments: Any) -> Any:
        divided = divide(*arguments)
        threading.Event().wait(1.0)  # longer than a poll
        return divided

    with group_module.join_group(bus.kafka, [bus.kafka.topic]) as member:

        def is_stable_with(partitions: int) -> bool:
            assigned = len(member.assigned())
            return assigned == partitions and member.member.group_metadata().state == MemberState.STABLE

        wait_for("the partitions to be assigned", lambda: is_stable_with(_PARTITIONS))
        monkeypatch.setattr(ConsumerCoordinator, "_perform_assignment", divide_slowly)
        with kafka.admin() as admin:
            admin.create_partitions({bus.kafka.topic: _PARTITIONS + 1})
        wait_for("the new one to be assigned, too", lambda: is_stable_with(_PARTITIONS + 1), 80)


def test_a_killed_member_is_replaced(bus: Settings, tmp_path: Path) -> None:
    """A killed process keeps its partitions until its session expires; then another one continues (`fenced`)."""
    send(bus, _records(range(300)))
    with _ingesting_process(bus, tmp_path) as process:
        process.kill()
    send(bus, _records(range(200, 500)))
    with _ingesting(bus):
        wait_for("everything to be stored", lambda: _stored(bus) == 500)
    assert_verified(bus)
    assert audit(bus).passed


@pytest.mark.slow
def test_a_suspended_member_finds_its_partitions_moved(bus: Settings, tmp_path: Path) -> None:
    """Suspended until the others have its partitions, it resumes as a member of the group (`fenced`, `once`)."""
    send(bus, _records(range(300)))
    with _ingesting_process(bus, tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        send(bus, _records(range(200, 500)))
        with _ingesting(bus):
            wait_for("everything to be stored", lambda: _stored(bus) == 500)
        process.send_signal(signal.SIGCONT)
        send(bus, _records(range(400, 600)))
        wait_for("the resumed process to store the rest", lambda: _stored(bus) == 600)
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert_verified(bus)
    assert audit(bus).passed


@pytest.mark.slow
def test_ingesters_beside_a_stream(bus: Settings, tmp_path: Path) -> None:
    """Two divide the topic with a `stream`, which serves what all of them commit; each ends cleanly (`once`)."""
    names, sent = {"one": "ingest", "other": "ingest", "stream": "stream"}, 0
    with ExitStack() as stack:
        processes = [stack.enter_context(_started(bus, tmp_path / folder, name)) for folder, name in names.items()]
        while not all(_has_committed(tmp_path / folder) for folder in names):
            sent += send(bus, _records(range(sent, sent + 60)))
        wait_for("everything to be stored", lambda: _stored(bus) == sent)
        newest = open_lake(bus.lake_root).table("events").version()
        wait_for("everything to be served", lambda: (info := published(bus)) and info.stamp.lake_version == newest)
        for process in processes:
            process.terminate()
        assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0, 0]
    assert_verified(bus)
    assert audit(bus).passed


@contextmanager
def _ingesting_process(bus: Settings, folder: Path) -> Iterator[Started]:
    """Yield a process that shares the topic and has committed something; kill it on exit."""
    with _started(bus, folder / "process", "ingest") as process:
        wait_for("its first commit", lambda: _has_committed(folder / "process"))
        yield process


@contextmanager
def _started(bus: Settings, folder: Path, name: str) -> Iterator[Started]:
    values = environment(bus) | {
        "KARMALAKE_INGEST_SHARE_PARTITIONS": "true",
        "PYTHONUNBUFFERED": "1",
    }
    folder.mkdir()
    with (
        (folder / "output").open("w") as output,
        ended(Started([*KARMALAKE, name], cwd=folder, env=values, stdout=output)) as process,
    ):
        yield process


def _has_committed(folder: Path) -> bool:
    return "commit" in (folder / "output").read_text(encoding="utf-8")


def test_more_ingesters_than_partitions(bus: Settings) -> None:
    """One without partitions waits and commits nothing; `drain` ends."""
    send(bus, _records(range(50)))
    with ExitStack() as others:
        records = [others.enter_context(_ingesting(bus)) for _ in range(_PARTITIONS)]
        wait_for("everything to be stored", lambda: _stored(bus) == 50)
        with open_ingest(bus) as one_more:
            assert drain(one_more, lambda _: None) <= 1
    assert sum(record.total("accepted") for each in records for record in each) <= 50
    assert_verified(bus)
