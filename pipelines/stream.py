"""The long-lived process: drain for ever, and keep what is served current.

Loops beside each other. Ingest commits whenever records come; the refresh computes what was touched by the time it
is free, publishes it to Redis, and puts a new warehouse.duckdb in place every `derive_interval_seconds`, also without
a commit, because windows move by themselves. Ingest never waits for Redis: when publishing fails, that is reported and
tried again (`isolated`). Where `ingest.publish_dead_letters` is on, a third loop copies dead letters (`dlq.py`). As
often as a warehouse is put in place, small files are merged, so that they never pile up.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import polars as pl

from pipelines import dlq
from pipelines.beside import best_effort
from pipelines.drain import drain_once, open_ingest
from pipelines.errors import KarmalakeError, TransientError
from pipelines.ingest.guard import Halted
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import KeptOpen, create_lake, open_lake
from pipelines.lake.upkeep import compact, vacuum_when_due
from pipelines.refresh import publish_views, refresh_draft
from pipelines.reputation.derive import Derived, open_draft
from pipelines.serving.publish import Published
from pipelines.serving.state import State, open_state
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 2.0
OnTurn = Callable[[str, KarmalakeError | None], None]
"""Hears of each turn of the loops `ingest`, `refresh` and `dlq`, and of the outage that ended it, if one did."""
OnHalted = Callable[[tuple[Halted, ...]], None]
"""Hears in each turn of `ingest` which topic partitions are halted for their rejected records."""


def stream(
    settings: Settings,
    stopping: threading.Event,
    on_commit: Callable[[CommitRecord], None],
    on_refresh: Callable[[Derived, Published], None],
    on_turn: OnTurn = lambda _loop, _outage: None,
    on_halted: OnHalted = lambda _halted: None,
    on_copied: dlq.OnTurn = lambda _turn: None,
) -> None:
    """Ingest and refresh until `stopping` is set; then finish the batch in hand, publish it, and return.

    Brokers and cache may come and go: each loop retries what is transient. Any other error of ingest or of the refresh
    ends the loops. The callbacks are called from the loops' threads; what they raise is logged.
    """
    create_lake(settings.lake_root)  # ingest would, but the refresh may come first
    committed = threading.Event()
    on_commit = best_effort(on_commit, "reporting a commit")
    on_refresh = best_effort(on_refresh, "reporting a refresh")
    on_turn = best_effort(on_turn, "reporting a turn")
    on_copied = best_effort(on_copied, "reporting copies of dead letters")
    with (
        _copying(settings, stopping, on_copied, on_turn) as letters,
        ThreadPoolExecutor(1, "refresh") as pool,
    ):
        refreshing = pool.submit(_refresh_loop, settings, stopping, committed, on_refresh, on_turn)
        refreshing.add_done_callback(lambda _: stopping.set())

        def report(record: CommitRecord) -> None:
            on_commit(record)
            committed.set()
            if record.total("dead_letters"):
                letters.set()

        try:
            _ingest_loop(settings, stopping, report, on_turn, best_effort(on_halted, "reporting what is halted"))
        finally:
            stopping.set()
            committed.set()
        refreshing.result()


@contextmanager
def _copying(
    settings: Settings, stopping: threading.Event, on_copied: dlq.OnTurn, on_turn: OnTurn
) -> Generator[threading.Event]:
    """Copy dead letters in a thread, where that is wanted; yield what is to be set when there are new ones."""
    letters = threading.Event()
    if not settings.ingest.publish_dead_letters:
        yield letters
        return
    dlq.prepare(settings)
    with ThreadPoolExecutor(1, "dlq") as pool:
        pool.submit(dlq.copy_until, settings, stopping, letters, on_copied, lambda outage: on_turn("dlq", outage))
        try:
            yield letters
        finally:
            stopping.set()
            letters.set()


def _ingest_loop(
    settings: Settings,
    stopping: threading.Event,
    on_commit: Callable[[CommitRecord], None],
    on_turn: OnTurn,
    on_halted: OnHalted,
) -> None:
    while not stopping.is_set():
        try:
            with open_ingest(settings) as ingest:
                while not stopping.is_set():
                    record = drain_once(ingest)
                    if record is not None:
                        on_commit(record)
                    on_halted(ingest.halted())
                    on_turn("ingest", None)
        except TransientError as error:
            on_turn("ingest", error)
            _LOG.warning("ingest: %s; trying again in %.0f s", error, _RETRY_SECONDS)
            stopping.wait(_RETRY_SECONDS)


def _refresh_loop(
    settings: Settings,
    stopping: threading.Event,
    committed: threading.Event,
    on_refresh: Callable[[Derived, Published], None],
    on_turn: OnTurn,
) -> None:
    interval = settings.reputation.derive_interval_seconds
    unpublished: pl.Series | None = None  # at first anybody's document may be another one
    due = time.monotonic()
    lake = KeptOpen(open_lake(settings.lake_root).root)
    with (
        open_draft(settings.warehouse_path) as draft,
        open_state(settings.published_dir) as state,
        ThreadPoolExecutor(1, "upkeep") as pool,
    ):
        keep_up = best_effort(_keep_up, "upkeep")
        upkeep = pool.submit(keep_up, settings, state)
        last = False
        while not last:
            committed.wait(max(0.0, due - time.monotonic()))
            last = stopping.is_set()
            committed.clear()
            derived = refresh_draft(draft, lake, settings)
            unpublished = _both(unpublished, derived.changed)
            try:
                published = publish_views(draft.connection, settings, state, unpublished)
            except TransientError as error:
                on_turn("refresh", error)
                _LOG.warning("refresh: %s; trying again in %.0f s", error, _RETRY_SECONDS)
                committed.set()
                stopping.wait(_RETRY_SECONDS)
            else:
                unpublished = pl.Series(dtype=pl.String)
                on_refresh(derived, published)
                on_turn("refresh", None)
            if last or time.monotonic() >= due:
                draft.publish()
                due = time.monotonic() + interval
                if upkeep.done():
                    upkeep = pool.submit(keep_up, settings, state)


def _keep_up(settings: Settings, state: State) -> None:
    """Save what was published, merge small files, and remove files that no reader needs any more."""
    state.save()
    lake = open_lake(settings.lake_root)
    try:
        compact(lake, settings.lake.compact_after_files)
    except TransientError as error:
        _LOG.info("compaction: %s", error)
    removed = vacuum_when_due(lake, settings.lake, settings.data_dir / "vacuumed")
    if removed:
        _LOG.info("vacuum: %d files are removed", len(removed))


def _both(first: pl.Series | None, second: pl.Series | None) -> pl.Series | None:
    """Return the users in either; None stands for all."""
    return None if first is None or second is None else pl.concat([first, second]).unique()
