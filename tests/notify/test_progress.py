"""How far a destination has come: nothing above a checkpoint is settled, whatever moves."""

from types import SimpleNamespace
from typing import Any

from pipelines.notify.lanes import Delivery
from pipelines.notify.progress import Progress


def delivery(offset: int, partition: int = 0) -> Delivery:
    """Return a delivery of the record at this place."""
    record: Any = SimpleNamespace(partition=partition, offset=offset)
    notification: Any = None
    return Delivery(record, notification)


def taken(*partitions: int) -> Progress:
    """Return the progress of topic partitions that are ours and of which nothing was read yet."""
    progress = Progress()
    progress.take(partitions)
    assert [progress.begin(partition, None) for partition in partitions] == [None] * len(partitions)
    return progress


def test_a_checkpoint_stays_below_what_is_unsettled() -> None:
    """It moves as far as everything below it is settled, in whichever order that happens."""
    progress, (first, second) = taken(0), (delivery(3), delivery(5))
    assert progress.checkpoints() == {}
    progress.read(0, 8, [first, second])
    assert progress.checkpoints() == {0: 3}
    progress.settle(second)
    assert progress.checkpoints() == {0: 3}
    progress.settle(first)
    assert progress.checkpoints() == {0: 8}
    progress.committed({0: 8})
    assert progress.checkpoints() == {}


def test_what_is_left_has_no_checkpoint() -> None:
    """What was under way is withdrawn, so its place must not be passed; an answer that comes late changes nothing."""
    progress, late = taken(0, 1), delivery(3)
    progress.read(0, 8, [late])
    progress.leave([0])
    assert late.withdrawn
    assert (progress.is_read(0), progress.is_read(1)) == (False, True)
    progress.settle(late)
    assert progress.checkpoints() == {}


def test_what_comes_back_at_once_begins_at_its_checkpoint() -> None:
    """The reader stands behind what was withdrawn, which would never be read again."""
    progress, settled = taken(0), delivery(2)
    progress.read(0, 9, [settled, delivery(3)])
    progress.settle(settled)
    progress.leave([0])
    assert progress.begin(0, 9) == 9, "not ours: to be read again by us, if it ever is"
    progress.take([0])
    assert not progress.is_read(0)
    assert progress.begin(0, 9) == 3
    assert progress.is_read(0)
    assert progress.checkpoints() == {0: 3}
    progress.read(0, 9, [delivery(6)])
    assert progress.checkpoints() == {0: 6}


def test_what_was_somebody_elses_meanwhile_begins_where_the_group_is() -> None:
    """The reader has that from Kafka: what we knew of it is old."""
    progress = taken(0, 1)
    progress.read(0, 9, [delivery(3)])
    progress.leave([0, 1])
    progress.take([1])
    progress.leave([1])
    progress.take([0, 1])
    assert progress.begin(0, None) is None
    assert progress.checkpoints() == {}
    assert progress.begin(1, 20) == 20, "polled before the word that it is ours"
