"""The long-lived ingester: commit whenever records arrive.

`karmalake ingest` is this alone, beside a `stream` or Dagster that derives, serves and merges small files; `stream`
adds its own loop to it (`stream.py`). If `ingest.publish_dead_letters` is on, a second loop copies dead letters
(`dlq.py`). Each loop retries errors that may be temporary (`retries.py`, `isolated`).
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

from pipelines import dlq
from pipelines.best_effort import best_effort
from pipelines.boundary.stopping import ending_all
from pipelines.delivery import delivering
from pipelines.drain import drain_once, open_ingest
from pipelines.errors import TransientError, is_transient
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.message import MissingQueueError
from pipelines.ingest.sole_ingester import sole_ingester
from pipelines.lake.commit import CommitRecord
from pipelines.lake.run_lake import RunLake
from pipelines.retries import OnIteration, Retries
from pipelines.settings import Settings

OnCommit = Callable[[CommitRecord], None]
OnHalted = Callable[[tuple[HaltedPartition, ...]], None]
"""Called in each turn with the topic partitions that are halted because of rejected records."""


def ingest(
    settings: Settings,
    stopping: threading.Event,
    on_commit: OnCommit,
    on_iteration: OnIteration = lambda _loop, _outage: None,
    on_halted: OnHalted = lambda _halted: None,
    on_copied: dlq.OnProgress = lambda _turn: None,
) -> None:
    """Commit whenever records arrive until `stopping` is set; then finish the current commit, and return.

    Temporary errors are retried (`is_transient`); any other is raised, and FencedError at once if another process
    ingests the same. Callbacks run in the threads of the loops; errors that they raise are logged.
    """
    lake = RunLake(settings.lake_root)
    with (
        sole_ingester(settings),
        copied_dead_letters(settings, lake, on_copied, on_iteration) as letters_committed,
    ):

        def report(record: CommitRecord) -> None:
            on_commit(record)
            letters_committed(record)

        ingest_until(settings, lake, stopping, report, on_iteration, on_halted)


def ingest_until(
    settings: Settings,
    lake: RunLake,
    stopping: threading.Event,
    on_commit: OnCommit,
    on_iteration: OnIteration,
    on_halted: OnHalted,
) -> None:
    """Run the loop of `ingest` alone. A queue that was open before, and is missing now, is retried."""
    on_commit = best_effort(on_commit, "reporting a commit")
    on_halted = best_effort(on_halted, "reporting what is halted")
    retries = Retries("ingest", stopping, best_effort(on_iteration, "reporting a turn"))
    was_open = False
    with ending_all(stopping):
        while not stopping.is_set():
            try:
                with (
                    open_ingest(settings, stopping=stopping, opening=lake.open) as opened,
                    ending_all(stopping, unless=is_transient),
                    lake.explained(),
                ):
                    was_open = True
                    while not stopping.is_set():
                        lake.check()
                        record = drain_once(opened)
                        if record is not None:
                            on_commit(record)
                        on_halted(opened.halted())
                        retries.succeeded()
            except MissingQueueError as error:
                retries.failed(TransientError(str(error)) if was_open else error)
            except Exception as error:  # noqa: BLE001 - re-raised unless a retry may help
                retries.failed(error)


@contextmanager
def copied_dead_letters(
    settings: Settings, lake: RunLake, on_copied: dlq.OnProgress, on_iteration: OnIteration
) -> Generator[OnCommit]:
    """Copy dead letters in a thread, if enabled, a last time on exit; yield the function to call after each commit."""
    if not settings.ingest.publish_dead_letters:
        yield lambda _record: None
        return
    dlq.ensure_copy_checkpoints(settings, lake.open)
    on_copied = best_effort(on_copied, "reporting copies of dead letters")
    on_iteration = best_effort(on_iteration, "reporting a turn of the copies")
    with delivering(
        "dlq",
        lambda: dlq.open_dead_letter_topics(settings, lake.open),
        lambda topics: topics.copy_pending(on_copied),
        dlq.describe_copies(settings),
        partial(on_iteration, "dlq"),
    ) as committed:
        yield lambda record: committed() if record.total("dead_letters") else None
