"""The offset tracker: a checkpoint never passes a pending delivery, also during rebalances."""

from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.structs import TopicPartition

from pipelines.bus.clients import MemberState
from pipelines.notify.branch import DeliveryCounts, Plan, _read, _settle
from pipelines.notify.delivery import DeliveryResult, Outcome
from pipelines.notify.events import decode_changes, decode_events
from pipelines.notify.lanes import Delivery
from pipelines.notify.offset_tracker import OffsetTracker
from pipelines.notify.progress import Watch
from pipelines.notify.rules import RedisStream
from pipelines.notify.start_offsets import compaction_losses
from pipelines.settings import KafkaSettings, Settings


def delivery(offset: int, partition: int = 0) -> Delivery:
    """Return a delivery of the record at this offset."""
    record: Any = SimpleNamespace(partition=partition, offset=offset)
    notification: Any = SimpleNamespace(event=None)
    return Delivery(record, notification)


def taken(*partitions: int) -> OffsetTracker:
    """Return a tracker of newly assigned topic partitions, with nothing read."""
    tracker = OffsetTracker()
    tracker.assign(partitions)
    assert [tracker.resolve_start(partition, None) for partition in partitions] == [None] * len(partitions)
    return tracker


def test_a_checkpoint_stays_below_pending_deliveries() -> None:
    """It advances as far as everything below it is done, in any order of completion."""
    tracker, (first, second) = taken(0), (delivery(3), delivery(5))
    assert tracker.checkpoints() == {}
    tracker.record_read(0, 8, [first, second])
    assert tracker.checkpoints() == {0: 3}
    tracker.mark_done(second)
    assert tracker.checkpoints() == {0: 3}
    tracker.mark_done(first)
    assert tracker.checkpoints() == {0: 8}
    tracker.mark_committed({0: 8})
    assert tracker.checkpoints() == {}


def test_a_revoked_topic_partition_has_no_checkpoint() -> None:
    """Deliveries in flight are revoked, so the checkpoint must not pass them; a late result changes nothing."""
    tracker, late = taken(0, 1), delivery(3)
    tracker.record_read(0, 8, [late])
    tracker.revoke([0])
    assert late.revoked
    assert (tracker.is_positioned(0), tracker.is_positioned(1)) == (False, True)
    tracker.mark_done(late)
    assert tracker.checkpoints() == {}


def test_a_topic_partition_reassigned_at_once_resumes_at_its_checkpoint() -> None:
    """Otherwise the reader would stay past the revoked deliveries, which would never be read again."""
    tracker, settled = taken(0), delivery(2)
    tracker.record_read(0, 9, [settled, delivery(3)])
    tracker.mark_done(settled)
    tracker.revoke([0])
    assert tracker.resolve_start(0, 9) == 9, "not ours: to be read again by us, if it ever is"
    tracker.assign([0])
    assert not tracker.is_positioned(0)
    assert tracker.resolve_start(0, 9) == 3
    assert tracker.is_positioned(0)
    assert tracker.checkpoints() == {0: 3}
    tracker.record_read(0, 9, [delivery(6)])
    assert tracker.checkpoints() == {0: 6}


def test_a_topic_partition_returned_by_another_notifier_resumes_at_the_committed_offset() -> None:
    """The reader has the committed offset from Kafka; ours is outdated."""
    tracker = taken(0, 1)
    tracker.record_read(0, 9, [delivery(3)])
    tracker.revoke([0, 1])
    tracker.assign([1])
    tracker.revoke([1])
    tracker.assign([0, 1])
    assert tracker.resolve_start(0, None) is None
    assert tracker.checkpoints() == {}
    assert tracker.resolve_start(1, 20) == 20, "polled before the word that it is ours"


def test_offsets_that_compaction_removed_are_noticed() -> None:
    """From the group's checkpoint, or what was read last: a new group, and a reader that was moved, miss nothing."""
    place, tracker = TopicPartition("scores", 0), OffsetTracker()
    tracker.assign([0, 1])
    assert tracker.resolve_start(0, 7, committed=4) == 7
    assert tracker.resolve_start(1, None) is None
    [loss] = compaction_losses(place, tracker.next_offset(0), position=12, records=3)
    assert loss.lost == 5
    assert loss.message.startswith("5 changes on scores-0 were replaced by newer ones of their users")
    assert compaction_losses(place, tracker.next_offset(1), position=12, records=3) == ()
    tracker.record_read(0, 12, [])
    assert compaction_losses(place, tracker.next_offset(0), position=14, records=2) == ()
    assert compaction_losses(place, tracker.next_offset(0), position=11, records=2) == ()
    assert compaction_losses(place, tracker.next_offset(0), position=14, records=0)[0].lost == 2
    tracker.restart(0)
    tracker.restart(9)
    assert tracker.next_offset(0) is None


def test_a_destination_of_changes_reports_them() -> None:
    """Its first poll after a week off, and the ones after it; one of events has no such topic."""
    for decode, lost in ((decode_changes, [3, 2]), (decode_events, [])):
        branch = _branch(decode, committed=4)
        for polled in ([7, 8], [7, 8], [9, 12]):
            branch.reader.polled = polled
            _read(branch)
        assert [loss.lost for loss in branch.counts.losses] == lost


def _settled(answered: DeliveryResult, *, revoked: bool = False) -> Any:
    """Return a branch without dead letters (`None`), after an answer for a delivery of a user who was just erased."""
    settled = delivery(7)
    settled.revoked = revoked
    branch: Any = SimpleNamespace(
        lanes=SimpleNamespace(poll_results=lambda _: [(settled, answered)], failed_attempts=list),
        dead_letters=None,
        counts=DeliveryCounts(),
        tracker=OffsetTracker(),
        redact=lambda _: None,
    )
    branch.tracker.assign([0])
    branch.tracker.record_read(0, 8, [settled])
    _settle(branch, 0.0)
    return branch


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.RETRY, Outcome.ERASED])
def test_a_revoked_delivery_is_no_dead_letter(outcome: Outcome) -> None:
    """The new owner of its topic partition delivers it, or writes the dead letter."""
    assert _settled(DeliveryResult(outcome, "HTTP 400"), revoked=True).counts == DeliveryCounts()


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.ERASED])
def test_an_erased_user_gets_no_dead_letter(outcome: Outcome) -> None:
    """Neither one whose erasure came during the last attempt; the checkpoint passes the record (`erasable`)."""
    branch = _settled(DeliveryResult(outcome, "HTTP 400"))
    assert branch.counts == DeliveryCounts(erased=1)
    assert branch.tracker.checkpoints() == {0: 8}


def _branch(decode: Any, committed: int) -> Any:
    """Return a branch of one topic partition, whose reader polls what a test says."""
    reader = _Reader(committed)
    fields = {"reader": reader, "settings": Settings(), "tracker": OffsetTracker(), "counts": DeliveryCounts()}
    plan = Plan("app", RedisStream(kind="redis_stream", key="k"), (), 9, lambda: None, KafkaSettings(), decode)  # type: ignore[arg-type, return-value]
    others = {"lanes": SimpleNamespace(in_flight=0), "moves": SimpleQueue[Any](), "paused_until": {}}
    others["watch"] = Watch(KafkaSettings(), "app")
    fields["tracker"].assign([0])
    return SimpleNamespace(plan=plan, **fields, **others)


class _Reader:
    """A consumer of one topic partition."""

    _coordinator = SimpleNamespace(rejoining=False)

    def __init__(self, committed: int) -> None:
        self.at, self.polled = committed, list[int]()

    def committed(self, _: TopicPartition) -> int:
        return self.at

    def group_metadata(self) -> Any:
        return SimpleNamespace(state=MemberState.STABLE)

    def poll(self, _: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        assert max_records
        common = {"topic": "t", "partition": 0, "timestamp": 0, "key": b"", "value": b"", "headers": ()}
        records = [SimpleNamespace(offset=at, **common) for at in self.polled]
        return {TopicPartition("scores", 0): records}

    def position(self, _: TopicPartition) -> int:
        return self.polled[-1] + 1

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("scores", 0)}

    def paused(self) -> set[TopicPartition]:
        return set()

    def resume(self, *_: TopicPartition) -> None:
        """Nothing is paused."""

    def seek(self, _: TopicPartition, at: int) -> None:
        assert at == self.polled[0]
