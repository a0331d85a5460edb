"""Start offsets on a real Apache Kafka: the end of the topic only once, and never past available records."""

from typing import Any, Literal
from unittest.mock import MagicMock, Mock

import pytest
from kafka.errors import NoOffsetForPartitionError, RebalanceInProgressError
from kafka.structs import (
    MemberState,  # pyright: ignore[reportAttributeAccessIssue] - outdated stubs
    OffsetAndMetadata,
    TopicPartition,
)

from pipelines.bus.clients import admin_client, consumer
from pipelines.emit.producer import Record
from pipelines.errors import TransientError
from pipelines.notify import branch
from pipelines.notify.progress import Watch
from pipelines.notify.start_offsets import Loss, seek_after_data_loss, seek_without_checkpoint
from pipelines.settings import Settings
from tests.draining import send, valid_records
from tests.monitoring.scraping import becomes, metrics_address
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import checkpoints, command, lag, notifying, webhook
from tests.notify.receiver import Receiver
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.jvm


def _begins_now(receiver: Receiver) -> str:
    return webhook("ops", receiver.url).replace('begin = "earliest"', "")


def _delete_up_to(bus: Settings, offsets: dict[int, int]) -> None:
    """Delete the records below these offsets, by topic partition, as retention does."""
    with admin_client(bus.kafka) as admin:
        admin.delete_records({TopicPartition(bus.kafka.topic, number): at for number, at in offsets.items()})


def _one_partition(records: list[Record]) -> list[Record]:
    return [record._replace(topic_partition=0) for record in records]


@pytest.mark.parametrize("begin", ["now", "earliest"])
def test_remaining_records_are_delivered_and_lost_ones_reported(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, begin: str
) -> None:
    """A checkpoint before the log: reading continues at the start of the log, wherever a new group would begin."""
    rules = write_rules(webhook("ops", receiver.url).replace('"earliest"', f'"{begin}"'))
    with notifying(bus, rules):
        wait_for("the first checkpoint", lambda: checkpoints(bus, "ops")[0] == 0)
        send(bus, _one_partition(valid_records(range(20))))
        wait_for("the first twenty", lambda: checkpoints(bus, "ops")[0] == 20)
    send(bus, _one_partition(valid_records(range(20, 200))))
    _delete_up_to(bus, {0: 50})
    with notifying(bus, rules) as done:
        wait_for("the rest", lambda: lag(bus, "ops") == 0 and checkpoints(bus, "ops")[0] == 200)
        wait_for("the report", lambda: done.losses)
    assert set(receiver.keys[:20]) == {f"e-{number}" for number in range(20)}
    assert set(receiver.keys[20:]) == {f"e-{number}" for number in range(50, 200)}
    [loss] = done.losses
    assert loss.lost == 30
    assert f"30 records of {bus.kafka.topic}-0 (offsets 20 to 49) were deleted" in loss.message


def test_a_checkpoint_above_the_end_of_the_log_skips_nothing(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """The log was truncated: all its records are delivered, and the loss is reported."""
    send(bus, _one_partition(valid_records(range(10))))
    place = TopicPartition(bus.kafka.topic, 0)
    with consumer(bus.kafka, group_id=f"{bus.notify.group_id}.ops", enable_auto_commit=False) as reader:
        reader.commit({place: OffsetAndMetadata(500, "", -1)})
    with notifying(bus, write_rules(_begins_now(receiver))) as done:
        wait_for("what there is", lambda: checkpoints(bus, "ops")[0] == 10)
        wait_for("the report", lambda: done.losses)
    assert set(receiver.keys) == {f"e-{number}" for number in range(10)}
    [loss] = done.losses
    assert loss.message.startswith(f"{bus.kafka.topic}-0 no longer has offset 500")


def test_a_topic_partition_that_is_added_is_read_from_its_start(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """Also by a destination that began at the end of the topic: the first events in it are delivered."""
    rules = write_rules(_begins_now(receiver))
    with notifying(bus, rules):
        wait_for("the first checkpoints", lambda: set(checkpoints(bus, "ops").values()) == {0})
    grown = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"partitions": 5})})
    with admin_client(bus.kafka) as admin:
        admin.create_partitions({bus.kafka.topic: 5})
    send(grown, [record._replace(topic_partition=4) for record in valid_records(range(10))])
    with notifying(grown, rules):
        wait_for("the events from before it was known", lambda: checkpoints(grown, "ops")[4] == 10)
    assert set(receiver.keys) == {f"e-{number}" for number in range(10)}


def test_a_new_destination_has_a_checkpoint_everywhere_at_once(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """Two notifiers that start together do not mistake each other's first checkpoint for an existing group."""
    send(bus, valid_records(range(40)))
    rules = write_rules(_begins_now(receiver))
    with notifying(bus, rules), notifying(bus, rules):
        wait_for("the checkpoints of the beginning", lambda: lag(bus, "ops") == 0)
        send(bus, valid_records(range(40, 50)))
        wait_for("the later events", lambda: len(set(receiver.keys)) == 10 and lag(bus, "ops") == 0)
    assert set(receiver.keys) == {f"e-{number}" for number in range(40, 50)}


def test_lost_records_are_reported(bus: Settings, receiver: Receiver, write_rules: WriteRules) -> None:
    """The command warns with topic partition and offsets, and a metric counts it."""
    rules = write_rules(webhook("ops", receiver.url))
    with notifying(bus, rules):
        wait_for("the first checkpoint", lambda: checkpoints(bus, "ops")[0] == 0)
    send(bus, _one_partition(valid_records(range(10))))
    _delete_up_to(bus, {0: 4})
    with ended(command(bus, rules, "--metrics-port", "0")) as notifier:
        address = metrics_address(notifier)
        becomes(address, 4, "karmalake_notify_lost_records_total", destination="ops")
        becomes(address, 6, "karmalake_notify_deliveries_total", destination="ops")
        notifier.terminate()
        output, _ = notifier.communicate(timeout=PATIENCE_SECONDS)
    assert f"ops: 4 records of {bus.kafka.topic}-0 (offsets 0 to 3) were deleted by the topic's" in " ".join(
        output.split()
    )


class _Reader:
    """A member of a group on a topic of two partitions, of which it is assigned one."""

    def __init__(self, assigned: int, checkpoints: dict[int, int] | None = None) -> None:
        self.assigned = assigned
        self.checkpoints = checkpoints or {}
        self.asked: list[int] = []
        self.after_the_first_question: dict[int, int] = {}
        """Checkpoints that another member commits then."""
        self.sought: dict[int, int] = {}
        self.is_rebalancing = False
        self.known: set[int] | None = {0, 1}

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("t", self.assigned)}

    def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 5)

    def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 40)

    def partitions_for_topic(self, _: str) -> set[int] | None:
        return self.known

    def committed(self, place: TopicPartition) -> int | None:
        found = self.checkpoints.get(place.partition)
        if not self.asked:
            self.checkpoints |= self.after_the_first_question
        self.asked.append(place.partition)
        return found

    def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        if self.is_rebalancing:
            raise RebalanceInProgressError
        self.checkpoints |= {place.partition: at.offset for place, at in offsets.items()}

    def seek(self, place: TopicPartition, at: int) -> None:
        self.sought[place.partition] = at


def _seek(reader: _Reader, begin: Literal["now", "earliest"] = "now") -> tuple[Loss, ...] | None:
    member: Any = reader
    return seek_without_checkpoint(member, {TopicPartition("t", reader.assigned)}, begin)


def test_the_owner_of_the_first_topic_partition_begins_for_the_group() -> None:
    """The others wait: were each to look at the ends, the later one would skip what came in between."""
    other = _Reader(assigned=1)
    assert _seek(other) is None
    assert (other.checkpoints, other.sought) == ({}, {})
    owner = _Reader(assigned=0)
    [left_out] = _seek(owner) or ()
    assert (left_out.lost, "up to 70 records before that are not delivered" in left_out.message) == (0, True)
    assert (owner.checkpoints, owner.sought) == ({0: 40, 1: 40}, {})
    owner = _Reader(assigned=0)
    assert _seek(owner, "earliest") == ()
    assert (owner.checkpoints, owner.sought) == ({}, {0: 5})


@pytest.mark.parametrize("known", [None, set[int](), {1}])
def test_a_member_with_incomplete_metadata_waits(known: set[int] | None) -> None:
    """It is not the owner of the first topic partition because it knows no other."""
    reader = _Reader(assigned=1)
    reader.known = known
    assert _seek(reader) is None
    assert (reader.checkpoints, reader.sought) == ({}, {})


def test_a_member_that_waits_polls_seldom_and_reports_a_long_wait(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each poll asks for the checkpoint of every topic partition."""
    reader, lanes = MagicMock(), MagicMock(failure=None, in_flight=0)
    reader.group_metadata.return_value.state = MemberState.STABLE
    reader.partitions_for_topic.return_value, reader.committed.return_value = {0, 1}, None
    reader.assignment.return_value = {TopicPartition("t", 1)}
    lanes.poll_results.return_value = []
    missing = NoOffsetForPartitionError([TopicPartition("t", 1)])
    monkeypatch.setattr(branch, "poll_group_member", Mock(side_effect=missing))
    plan: Any = MagicMock(kafka=settings.kafka, max_in_flight=10)
    plan.is_quiet.return_value, plan.destination.begin = False, "now"
    watch = Watch(settings.kafka, "g.ops")
    waiting = branch._Branch(plan, settings, reader, MagicMock(), lanes, watch, MagicMock())
    branch._turn(waiting, MagicMock())
    lanes.poll_results.assert_called_with(branch._POLL_MS / 1000)
    assert watch.waits_since is not None
    watch.waits_since -= 3 * settings.kafka.request_timeout_seconds
    with pytest.raises(TransientError, match=r"the group g\.ops waits for its first checkpoints"):
        branch._turn(waiting, MagicMock())


def test_a_beginning_that_was_not_committed_is_none() -> None:
    """The member would continue there, and commit it, while the next owner of the others found a group of old."""
    reader = _Reader(assigned=0)
    reader.is_rebalancing = True
    assert _seek(reader) == ()
    assert (reader.checkpoints, reader.sought) == ({}, {})


@pytest.mark.parametrize("assigned", [0, 1])
def test_a_beginning_between_two_questions_is_found(assigned: int) -> None:
    """A checkpoint is asked for by topic partition: with one of them, the others exist too, though not found before."""
    reader = _Reader(assigned)
    reader.after_the_first_question = {0: 40, 1: 40}
    _seek(reader)
    assert reader.asked[:2] == [0, 1]
    assert reader.sought == {}


def test_only_assigned_topic_partitions_are_repositioned() -> None:
    """A rebalance may happen between the error and the seek."""
    reader = _Reader(assigned=1, checkpoints={1: 9})
    member: Any = reader
    seek_without_checkpoint(member, {TopicPartition("t", 0), TopicPartition("t", 1)}, "now")
    assert reader.sought == {}
    reader = member = _Reader(assigned=0, checkpoints={1: 9})
    seek_without_checkpoint(member, {TopicPartition("t", 0), TopicPartition("t", 1)}, "now")
    assert reader.sought == {0: 5}
    reader = member = _Reader(assigned=1)
    losses = seek_after_data_loss(member, {TopicPartition("t", 1): 3, TopicPartition("t", 0): 8})
    assert reader.sought == {1: 5}
    assert [loss.lost for loss in losses] == [2, 0]
    assert "its log was truncated, or the topic was recreated" in losses[1].message
