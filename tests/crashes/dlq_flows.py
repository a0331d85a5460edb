"""Killing the copies of dead letters, and the start that goes on with them."""

from typing import Any

from pipelines.dlq import open_dead_letter_topic
from pipelines.settings import Settings
from tests.copies import copied_places, letter_places
from tests.crashes.flows import Flow, killed, lake
from tests.crashes.kills import Moment
from tests.draining import drain_all, with_ingest

_COPYING = {
    "pipelines.dlq:connect_copies": 1,
    "pipelines.lake.outbox:Outbox.catch_up": 2,
    "pipelines.lake.outbox:_places": 1,
    "pipelines.lake.outbox:open_file": 3,
    "pipelines.emit.copies:CopyWriter.write": 3,
    "pipelines.emit.producer:Delivery.wait": 3,
    "pipelines.lake.outbox:Outbox.passed_on": 1,
    "pipelines.dlq:DeadLetterTopic.close": 1,
}
_BEGINNING = {"pipelines.dlq:prepare": 1, "pipelines.dlq:begin": 2, "pipelines.lake.outbox:publish": 2}


def copy(settings: Settings) -> None:
    """Ingest all batches and copy their dead letters, as `karmalake drain` does."""
    drain_all(with_ingest(settings, publish_dead_letters=True, max_batch_records=1))


def _committed_and_not_copied(settings: Settings) -> None:
    """Leave the state behind in which copies are switched on and nothing is copied yet."""
    open_dead_letter_topic(settings)
    drain_all(with_ingest(settings, publish_dead_letters=False, max_batch_records=1))


def _with_copies(settings: Settings) -> dict[str, Any]:
    """Return what a reader of the lake sees, every dead letter of which has a copy: of some, it may be two."""
    assert set(copied_places(settings)) == set(letter_places(settings))
    return lake(settings)


FLOWS = {
    "copies of dead letters beside ingest": Flow(
        copy, {"pipelines.drain:commit_batch": 1, **_BEGINNING, **_COPYING}, seen=_with_copies
    ),
    "recovery from copies that were not noted": Flow(
        copy,
        dict.fromkeys(_COPYING, 1),
        killed(Moment("pipelines.lake.outbox:Outbox.passed_on", "before", 1), copy, _committed_and_not_copied),
        seen=_with_copies,
    ),
}
