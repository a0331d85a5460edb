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
    progress = Progress()
    progress.take(partitions)
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
    assert (progress.holds(0), progress.holds(1)) == (False, True)
    progress.settle(late)
    assert progress.checkpoints() == {}


def test_what_comes_back_begins_anew() -> None:
    """Reading begins where the group has committed, which may be below what a poll had brought before the move."""
    progress = taken(0)
    progress.read(0, 9, [delivery(3)])
    progress.leave([0])
    progress.take([0])
    assert progress.checkpoints() == {}
    progress.read(0, 3, [delivery(6)])
    assert progress.checkpoints() == {0: 3}
