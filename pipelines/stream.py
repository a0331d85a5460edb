"""The long-lived process: drain for ever, and keep what is served current.

Loops beside each other. Ingest commits whenever records come; the refresh computes what was touched by the time it
is free, publishes it to Redis, and puts a new warehouse.duckdb in place every `derive_interval_seconds`, also without
a commit, because windows move by themselves. Users with very many events are computed just before that, so that the
others' scores do not wait for them. Ingest never waits for Redis, and each loop retries what another try may cure
(`retries.py`, `isolated`). Where `ingest.publish_dead_letters` is on, a third loop copies dead letters (`dlq.py`). As
often as a warehouse is put in place, small files are merged, so that they never pile up.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import polars as pl

from pipelines import dlq
from pipelines.best_effort import best_effort
from pipelines.clock import Moments
from pipelines.drain import drain_once, open_ingest
from pipelines.errors import TransientError
from pipelines.ingest.guard import Halted
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import KeptOpen, Lake, create_lake, open_lake
from pipelines.lake.upkeep import compact, vacuum_when_due
from pipelines.refresh import Refreshing, derive_draft, publish_views
from pipelines.reputation.derive import Derived, Draft, open_draft
from pipelines.retries import OnTurn, Retries
from pipelines.serving.publish import Published
from pipelines.serving.read import newest_as_of
from pipelines.serving.state import State, open_state
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
OnRefresh = Callable[[Derived, Published], None]
OnHalted = Callable[[tuple[Halted, ...]], None]
"""Hears in each turn of `ingest` which topic partitions are halted for their rejected records."""


def stream(
    settings: Settings,
    stopping: threading.Event,
    on_commit: Callable[[CommitRecord], None],
    on_refresh: OnRefresh,
    on_turn: OnTurn = lambda _loop, _outage: None,
    on_halted: OnHalted = lambda _halted: None,
    on_copied: dlq.OnTurn = lambda _turn: None,
) -> None:
    """Ingest and refresh until `stopping` is set; then finish the batch in hand, publish it, and return.

    Brokers, lake and cache may come and go, and the clock may be set back: each loop retries what another try may cure
    (`may_pass`). Any other error of ingest or of the refresh ends the loops: a newer publisher, corrupt state, a
    setting. The callbacks are called from the loops' threads; what they raise is logged.
    """
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
    retries = Retries("ingest", stopping, on_turn)
    while not stopping.is_set():
        try:
            with open_ingest(settings) as ingest:
                while not stopping.is_set():
                    record = drain_once(ingest)
                    if record is not None:
                        on_commit(record)
                    on_halted(ingest.halted())
                    retries.succeeded()
        except Exception as error:  # noqa: BLE001 - it is raised again unless another try may cure it
            retries.failed(error)


def _refresh_loop(
    settings: Settings,
    stopping: threading.Event,
    committed: threading.Event,
    on_refresh: OnRefresh,
    on_turn: OnTurn,
) -> None:
    retries = Retries("refresh", stopping, on_turn)
    with (
        open_draft(settings.warehouse_path) as draft,
        open_state(settings.published_dir) as state,
        ThreadPoolExecutor(1, "upkeep") as pool,
    ):
        refreshing = _Refreshing(settings, draft, state, on_refresh, pool)
        last = False
        while not last:
            committed.wait(max(0.0, refreshing.due - time.monotonic()))
            last = stopping.is_set()
            committed.clear()
            try:
                refreshing.turn(last=last)
            except Exception as error:  # noqa: BLE001 - it is raised again unless another try may cure it
                committed.set()
                retries.failed(error)
            else:
                retries.succeeded()


class _Refreshing:
    """What the refresh holds between its turns. A turn that failed may be followed by another one."""

    def __init__(
        self, settings: Settings, draft: Draft, state: State, on_refresh: OnRefresh, pool: ThreadPoolExecutor
    ) -> None:
        self.due = time.monotonic()
        """When the next warehouse is to be put in place."""
        self._settings, self._draft, self._state, self._on_refresh = settings, draft, state, on_refresh
        self._unpublished: pl.Series | None = None  # at first anybody's document may be another one
        self._moments, self._knows_published = Moments(), False
        self._lake: Lake | None = None
        self._pool, self._keep_up = pool, best_effort(_keep_up, "upkeep")
        self._upkeep: Future[None] | None = None

    def turn(self, *, last: bool) -> None:
        """Serve what was touched; where it is time, or for the `last` time, also users put off, and a warehouse."""
        due = last or time.monotonic() >= self.due
        derived = self._derive(Draft.refresh_others)
        try:
            self._serve(derived)
            if due and self._draft.put_off():
                self._serve(self._derive(Draft.refresh))
        finally:
            if due:
                self._put_in_place()

    def _derive(self, how: Refreshing) -> Derived:
        """Bring the draft up to the lake and to now."""
        unpublished, self._unpublished = self._unpublished, None  # what a failure leaves, no names tell
        self._lake = self._lake or KeptOpen(create_lake(self._settings.lake_root).root)
        derived = derive_draft(self._draft, self._lake, self._settings, self._moments.next(), how)
        self._unpublished = _both(unpublished, derived.changed)
        return derived

    def _serve(self, derived: Derived) -> None:
        if not self._knows_published:
            newest = newest_as_of(self._settings)
            self._moments.not_before(newest)
            self._knows_published = True
            if newest is not None and newest > derived.as_of:
                derived = self._derive(Draft.refresh)
        published = publish_views(self._draft.connection, self._settings, self._state, self._unpublished)
        self._unpublished = pl.Series(dtype=pl.String)
        self._on_refresh(derived, published)

    def _put_in_place(self) -> None:
        if self._draft.put_off():
            self._derive(Draft.refresh)
        self._draft.publish()
        self.due = time.monotonic() + self._settings.reputation.derive_interval_seconds
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = self._pool.submit(self._keep_up, self._settings, self._state)


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
