"""Kills while dead letters are copied, and while copying recovers from a kill."""

from typing import Any

from pipelines.dlq import open_dead_letter_topics
from pipelines.settings import Settings
from tests.crashes.flows import Flow, killed, lake, unknown
from tests.crashes.kills import Moment
from tests.dlq_copies import copied_places, dead_letter_places
from tests.draining import drain_all, with_ingest

_COPYING = {
    "pipelines.dlq:connect_copy_writer": 1,
    "pipelines.lake.dead_letter_outbox:DeadLetterOutbox.catch_up": 2,
    "pipelines.lake.dead_letter_outbox:_find_row_groups": 1,
    "pipelines.lake.dead_letter_rows:open_file": 3,
    "pipelines.emit.copies:CopyWriter.write": 3,
    "pipelines.emit.producer:BulkProducer.flush": 3,
    "pipelines.lake.dead_letter_outbox:DeadLetterOutbox.mark_delivered": 1,
    "pipelines.dlq:DeadLetterTopic.close": 1,
}
_BEGINNING = {
    "pipelines.dlq:ensure_copy_checkpoints": 1,
    "pipelines.dlq:init_checkpoint": 2,
    "pipelines.lake.dead_letter_outbox:save_mark": 1,
}


def copy(settings: Settings) -> None:
    """Ingest all batches and copy their dead letters, as `karmalake drain` does."""
    drain_all(with_ingest(settings, publish_dead_letters=True, max_batch_records=1))


def _committed_and_not_copied(settings: Settings) -> None:
    """Create a state with copies switched on and nothing copied yet."""
    open_dead_letter_topics(settings)
    drain_all(with_ingest(settings, publish_dead_letters=False, max_batch_records=1))


def _with_copies(settings: Settings) -> dict[str, Any]:
    """Return what a reader of the lake sees; assert that every dead letter has one or more copies."""
    assert set(copied_places(settings)) == set(dead_letter_places(settings))
    return lake(settings)


FLOWS = {
    "copies of dead letters beside ingest": Flow(
        copy, {"pipelines.drain:commit_batch": 1, **_BEGINNING, **_COPYING}, seen=_with_copies, stored=unknown
    ),
    "recovery from copies without a checkpoint": Flow(
        copy,
        dict.fromkeys(_COPYING, 1),
        killed(
            Moment("pipelines.lake.dead_letter_outbox:DeadLetterOutbox.mark_delivered", "before", 1),
            copy,
            _committed_and_not_copied,
        ),
        seen=_with_copies,
        stored=unknown,
    ),
}
