"""The offset tracker: a checkpoint never passes a pending delivery, also during rebalances."""

from types import SimpleNamespace
from typing import Any

from pipelines.notify.lanes import Delivery
from pipelines.notify.offset_tracker import OffsetTracker


def delivery(offset: int, partition: int = 0) -> Delivery:
    """Return a delivery of the record at this offset."""
    record: Any = SimpleNamespace(partition=partition, offset=offset)
    notification: Any = None
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
