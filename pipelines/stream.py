"""The long-lived process: drain for ever, and keep what is served current.

Two loops beside each other. Ingest commits whenever records come; the refresh computes what was touched by the time it
is free, publishes it to Redis, and puts a new warehouse.duckdb in place every `derive_interval_seconds`, also without
a commit, because windows move by themselves. Ingest never waits for Redis: when publishing fails, that is reported and
tried again (`isolated`). As often as a warehouse is put in place, small files are merged, so that they never pile up.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from pipelines.drain import drain_once, open_ingest
from pipelines.errors import TransientError
from pipelines.ingest.guard import Halted
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import KeptOpen, create_lake, open_lake
from pipelines.lake.upkeep import compact
from pipelines.refresh import publish_views, refresh_draft
from pipelines.reputation.derive import Derived, open_draft
from pipelines.serving.publish import Published
from pipelines.serving.state import State, open_state
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 2.0
OnTurn = Callable[[str, TransientError | None], None]
"""Hears of each turn of the loops `ingest` and `refresh`, and of the outage that ended it, if one did."""
OnHalted = Callable[[tuple[Halted, ...]], None]
"""Hears in each turn of `ingest` which topic partitions are halted for their rejected records."""


def stream(
    settings: Settings,
    stopping: threading.Event,
    on_commit: Callable[[CommitRecord], None],
    on_refresh: Callable[[Derived, Published], None],
    on_turn: OnTurn = lambda _loop, _outage: None,
    on_halted: OnHalted = lambda _halted: None,
) -> None:
    """Ingest and refresh until `stopping` is set; then finish the batch in hand, publish it, and return.

    Brokers and cache may come and go: each loop retries what is transient. Any other error ends both loops. The
    callbacks are called from the loops' threads.
    """
    create_lake(settings.lake_root)  # ingest would, but the refresh may come first
    committed = threading.Event()
    with ThreadPoolExecutor(1, "refresh") as pool:
        refreshing = pool.submit(_refresh_loop, settings, stopping, committed, on_refresh, on_turn)
        refreshing.add_done_callback(lambda _: stopping.set())
        try:
            _ingest_loop(settings, stopping, committed, on_commit, on_turn, on_halted)
        finally:
            stopping.set()
            committed.set()
        refreshing.result()


def _ingest_loop(
    settings: Settings,
    stopping: threading.Event,
    committed: threading.Event,
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
                        committed.set()
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
        upkeep = pool.submit(_keep_up, settings, state)
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
                    upkeep.result()
                    upkeep = pool.submit(_keep_up, settings, state)


def _keep_up(settings: Settings, state: State) -> None:
    """Save what was published, and merge small files."""
    state.save()
    try:
        compact(open_lake(settings.lake_root), settings.lake.compact_after_files)
    except TransientError as error:
        _LOG.info("compaction: %s", error)


def _both(first: pl.Series | None, second: pl.Series | None) -> pl.Series | None:
    """Return the users in either; None stands for all."""
    return None if first is None or second is None else pl.concat([first, second]).unique()
