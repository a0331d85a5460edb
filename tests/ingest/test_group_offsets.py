"""Offsets in the consumer group: after an outage they are committed again, and an outage is one warning."""

from collections.abc import Iterator
from typing import Any

import pytest
from kafka.errors import CoordinatorLoadInProgressError, NoError
from kafka.structs import TopicPartition

from pipelines.errors import TransientError
from pipelines.ingest import group_offsets
from pipelines.ingest.batch import OffsetRange
from pipelines.ingest.group_offsets import GroupOffsets
from pipelines.ingest.kafka import KafkaSource
from pipelines.settings import Settings


class Coordinator:
    """A coordinator that may be unavailable."""

    def __init__(self) -> None:
        self.away = False
        self.attempts = 0
        self.offsets: dict[TopicPartition, int] = {}

    def commit(self, next_offsets: dict[TopicPartition, int]) -> None:
        self.attempts += 1
        if self.away:
            raise TransientError("no broker answers")
        self.offsets |= next_offsets


class Clock:
    """A monotonic clock that a test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(group_offsets, "time", clock)
    return clock


def _range(
    topic_partition: int, next_offset: int, topic_id: str = "id", topic: str = "events"
) -> tuple[OffsetRange, ...]:
    return (OffsetRange(topic_id, topic, topic_partition, next_offset - 1, next_offset, 1),)


def test_after_an_outage_the_group_has_all_offsets(clock: Clock, project_log: pytest.LogCaptureFixture) -> None:
    """Also those of topic partitions without a later batch; each outage is one warning, and its end another."""
    coordinator = Coordinator()
    offsets = GroupOffsets("karmalake", coordinator.commit)
    for _ in range(2):
        project_log.clear()
        coordinator.away = True
        offsets.acknowledge(_range(0, 5))
        for number in range(10):
            clock.now += 60
            offsets.acknowledge(_range(1, 10 + number))
        assert coordinator.offsets.get(TopicPartition("events", 1)) != 19
        (warning,) = project_log.messages
        assert warning.startswith("offsets of the group karmalake were not committed (no broker answers)")
        coordinator.away = False
        clock.now += 60
        offsets.acknowledge(_range(2, 30))
        assert coordinator.offsets == {TopicPartition("events", n): at for n, at in ((0, 5), (1, 19), (2, 30))}
        assert project_log.messages[-1] == "offsets of the group karmalake are committed again"
        coordinator.offsets.clear()


def test_what_a_failure_left_is_committed_at_the_end(clock: Clock) -> None:
    """A drain has no later batch: it tries once more, without the pause, and only if there is something left."""
    coordinator = Coordinator()
    coordinator.away = True
    offsets = GroupOffsets("karmalake", coordinator.commit)
    offsets.acknowledge(_range(0, 5))
    coordinator.away = False
    offsets.acknowledge(_range(1, 7))
    offsets.finish()
    assert coordinator.offsets == {TopicPartition("events", 0): 5, TopicPartition("events", 1): 7}
    offsets.finish()
    assert coordinator.attempts == 2


def test_batches_do_not_wait_for_an_unavailable_coordinator(clock: Clock) -> None:
    """The pause between attempts doubles from 2 s to 60 s: an attempt may take a timeout on the thread that reads."""
    coordinator = Coordinator()
    coordinator.away = True
    offsets = GroupOffsets("karmalake", coordinator.commit)
    attempts: list[float] = []
    for second in range(250):
        before, clock.now = coordinator.attempts, 100.0 + second
        offsets.acknowledge(_range(0, second + 1))
        attempts += [second] * (coordinator.attempts - before)
    assert attempts == [0, 2, 6, 14, 30, 62, 122, 182, 242]


def test_offsets_of_a_deleted_topic_are_dropped(clock: Clock) -> None:
    """The recreated topic begins at 0."""
    coordinator = Coordinator()
    coordinator.away = True
    offsets = GroupOffsets("karmalake", coordinator.commit)
    offsets.acknowledge(_range(0, 1_000))
    coordinator.away = False
    clock.now += 60
    offsets.acknowledge(_range(1, 7, "another id"))
    assert coordinator.offsets == {TopicPartition("events", 1): 7}


def test_offsets_of_other_topics_wait_on(clock: Clock) -> None:
    """A topic that was recreated drops its own offsets only, and the numbers of topic partitions may be the same."""
    coordinator = Coordinator()
    coordinator.away = True
    offsets = GroupOffsets("karmalake", coordinator.commit)
    offsets.acknowledge(_range(0, 1_000) + _range(0, 50, "other id", "other"))
    coordinator.away = False
    clock.now += 60
    offsets.acknowledge(_range(1, 7, "another id"))
    assert coordinator.offsets == {TopicPartition("events", 1): 7, TopicPartition("other", 0): 50}


def test_a_starting_coordinator_is_asked_again(project_log: pytest.LogCaptureFixture) -> None:
    """It may say so in the result of a topic partition, which is no failure yet."""
    answers = [CoordinatorLoadInProgressError, NoError]

    class Admin:
        def alter_group_offsets(self, _group_id: str, offsets: dict[TopicPartition, Any]) -> dict[TopicPartition, Any]:
            return dict.fromkeys(offsets, answers.pop(0))

    KafkaSource(Settings(), {}, None, Admin()).acknowledge(_range(0, 5))
    assert (answers, project_log.messages) == ([], [])
