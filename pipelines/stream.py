"""The long-lived processes that serve: `stream` ingests and keeps what is served current, `serve` does only the latter.

They run concurrent loops; ingest is `ingester.py`. The refresh recomputes the users affected since its last turn,
publishes them to Redis, and replaces warehouse.duckdb every `derive_interval_seconds`, also without a commit, because
windows move with time. A thread writes to Redis (`live_publisher.py`), another one makes the new file, and one uploads
it to a lake on S3 (`live_uploader.py`), beside further refreshes. Users with very many events are computed just before
that, so that the scores of the others do not wait for them. Ingest never waits for Redis, and each loop retries errors
that may be temporary (`retries.py`, `isolated`). Small files are merged halfway between two replacements of the
warehouse, so that they do not accumulate, and scores do not wait for both at once.

The end publishes to Redis what is committed. It replaces the warehouse only after an erasure: the first refresh of the
next start does it, and `karmalake refresh`.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from math import inf

from pipelines import dlq
from pipelines.best_effort import best_effort
from pipelines.boundary.stopping import ending_all
from pipelines.canary import follow_canary
from pipelines.clock import MonotonicClock
from pipelines.errors import ConfigurationError, PolicyError, TransientError
from pipelines.feed import open_feed
from pipelines.feed_relay import OnRelayed, relayed_feed
from pipelines.ingest.sole_ingester import sole_ingester
from pipelines.ingester import OnCommit, OnHalted, copied_dead_letters, ingest_until
from pipelines.lake.commit import CommitRecord
from pipelines.lake.feed_retention import drop_old_changes
from pipelines.lake.run_lake import RunLake, await_lake
from pipelines.lake.tables import CachedLake, Lake, open_lake
from pipelines.lake.upkeep import compact, vacuum_when_due
from pipelines.live_publisher import LivePublisher, OnRefresh
from pipelines.live_uploader import LiveUploader
from pipelines.refresh import RefreshMethod, derive_draft, reflects_lake
from pipelines.reputation.derive import DerivationResult, Draft, open_draft
from pipelines.reputation.warehouse_file import Info
from pipelines.retries import OnIteration, Retries
from pipelines.serving.digest_cache import open_digest_cache
from pipelines.serving.publish import PublishResult
from pipelines.serving.read import latest_as_of
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while another one waits for it.

A refresh gives it up in each of hundreds of calls into DuckDB and Arrow. With Python's 5 ms it then often waits that
long for ingest: at 10,000 events per second, that doubled the time of a refresh.
"""
_FOLLOW_SECONDS = 0.25
"""How often `serve` looks for commits of others: one listing of the log, and no more where there is no new one."""


def stream(
    settings: Settings,
    stopping: threading.Event,
    on_commit: OnCommit,
    on_refresh: OnRefresh,
    on_iteration: OnIteration = lambda _loop, _outage: None,
    on_halted: OnHalted = lambda _halted: None,
    on_copied: dlq.OnProgress = lambda _turn: None,
    on_relayed: OnRelayed = lambda _turn: None,
) -> bool:
    """Ingest and refresh until `stopping` is set; then finish the current commit, publish it, and return.

    Return whether everything committed is published. It is not if `stopping` was set before the first refresh: that
    may take long, and is left to the next start.

    Brokers, lake and cache may become unavailable, and the clock may be set back: each loop retries temporary errors
    (`is_transient`). Any other error of ingest or of the refresh ends the loops: a newer publisher, corrupt state, an
    invalid setting, another lake in the place of the one that this run began with. Callbacks run in the threads of the
    loops; errors that they raise are logged. Raises FencedError at once if another process ingests the same.
    """
    lake = RunLake(settings.lake_root)
    with (
        sole_ingester(settings),
        _switching_often(),
        copied_dead_letters(settings, lake, on_copied, on_iteration) as letters_committed,
        relayed_feed(settings, lake.open, on_relayed, on_iteration) as changed,
        _refreshed(settings, lake, stopping, _followed(on_refresh, changed), on_iteration) as (committed, refreshing),
    ):

        def report(record: CommitRecord) -> None:
            on_commit(record)
            committed()
            letters_committed(record)

        ingest_until(settings, lake, stopping, report, on_iteration, on_halted)
    return refreshing.result()


def serve(
    settings: Settings,
    stopping: threading.Event,
    on_refresh: OnRefresh,
    on_iteration: OnIteration = lambda _loop, _outage: None,
    on_relayed: OnRelayed = lambda _turn: None,
) -> bool:
    """Refresh and publish what others commit, until `stopping` is set; then publish it a last time, and return.

    Waits until there is a lake: it never creates one. Result, errors and callbacks as in `stream`.
    """
    lake = RunLake(settings.lake_root, await_lake)
    with (
        _switching_often(),
        relayed_feed(settings, lake.open, on_relayed, on_iteration) as changed,
        _refreshed(settings, lake, stopping, _followed(on_refresh, changed), on_iteration) as (committed, refreshing),
        ending_all(stopping),
    ):
        retries = Retries("follow", stopping, on_iteration)
        followed: Lake | None = None
        seen = -1
        while not stopping.wait(_FOLLOW_SECONDS):
            try:
                with lake.explained():
                    lake.check()
                    followed = followed or CachedLake(lake.open().root)
                    newest = followed.table("events").version()
            except Exception as error:  # noqa: BLE001 - re-raised unless a retry may help
                followed = None
                retries.failed(error)
            else:
                retries.succeeded()
                if newest != seen:
                    committed()
                    seen = newest
    return refreshing.result()


def _followed(on_refresh: OnRefresh, changed: Callable[[], None]) -> OnRefresh:
    """Return a callback that also wakes the relay of the feed."""

    def call(derived: DerivationResult, published: PublishResult) -> None:
        changed()
        on_refresh(derived, published)

    return call


@contextmanager
def _switching_often() -> Generator[None]:
    """Let the threads of this process take turns more often than by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _refreshed(
    settings: Settings, lake: RunLake, stopping: threading.Event, on_refresh: OnRefresh, on_iteration: OnIteration
) -> Generator[tuple[Callable[[], None], "Future[bool]"]]:
    """Refresh in a thread, a last time on exit; yield the function to call after each commit, and the thread's result.

    The thread ends with the block, not when `stopping` is set: the last turn also has what is committed after that.
    """
    committed, ended = threading.Event(), threading.Event()
    if stopping.is_set():  # a signal during the start
        ended.set()
    on_refresh = best_effort(on_refresh, "reporting a refresh")
    on_iteration = best_effort(on_iteration, "reporting a turn of the refresh")

    def refresh() -> bool:
        with ending_all(stopping):
            return _refresh_loop(settings, lake, ended, committed, on_refresh, on_iteration)

    with ThreadPoolExecutor(1, "refresh") as pool:
        refreshing = pool.submit(refresh)
        try:
            yield committed.set, refreshing
        finally:
            ended.set()
            committed.set()
        refreshing.result()


def _refresh_loop(
    settings: Settings,
    lake: RunLake,
    ended: threading.Event,
    committed: threading.Event,
    on_refresh: OnRefresh,
    on_iteration: OnIteration,
) -> bool:
    """Refresh until `ended` is set, and then a last time if it has before; return whether everything is published."""
    retries = Retries("refresh", ended, on_iteration)
    if not _has_opened(lake, ended, retries):
        return False
    with (
        open_draft(settings.warehouse_path, settings.reputation) as draft,
        open_digest_cache(settings.published_dir) as digests,
        open_feed(settings) as feed,
        ThreadPoolExecutor(1, "upkeep") as pool,
        ThreadPoolExecutor(1, "serving") as serving,
        ThreadPoolExecutor(1, "upload") as uploading,
        ThreadPoolExecutor(1, "canary") as beside,
    ):
        publisher = LivePublisher(settings, digests, serving, on_refresh, committed.set, feed)
        refreshing = _RefreshLoop(settings, lake, draft, publisher, LiveUploader(settings, uploading), pool, beside)
        last = is_current = False
        while not last:
            committed.wait(refreshing.seconds_left())
            last = ended.is_set()
            committed.clear()
            if last and not refreshing.has_derived:
                break
            try:
                with lake.explained():
                    refreshing.turn(last=last)
            except Exception as error:  # noqa: BLE001 - re-raised unless a retry may help
                is_current = False
                committed.set()
                retries.failed(error)
            else:
                is_current = True
                retries.succeeded()
    return is_current


def _has_opened(lake: RunLake, ended: threading.Event, retries: Retries) -> bool:
    """Open the lake, trying again until `ended` is set; return whether it is open."""
    while not ended.is_set():
        try:
            lake.open()
        except Exception as error:  # noqa: BLE001 - re-raised unless a retry may help
            retries.failed(error)
        else:
            return True
    return False


class _RefreshLoop:
    """The state of the refresh loop between its turns; a failed turn may be followed by another one."""

    def __init__(
        self,
        settings: Settings,
        lake: RunLake,
        draft: Draft,
        publisher: LivePublisher,
        uploader: LiveUploader,
        pool: ThreadPoolExecutor,
        beside: ThreadPoolExecutor,
    ) -> None:
        self._due = time.monotonic()
        """Monotonic time of the next replacement of the warehouse, in seconds."""
        self._settings, self._draft, self._publisher, self._uploader = settings, draft, publisher, uploader
        self.has_derived = False
        self._clock, self._knows_published = MonotonicClock(), False
        self._run_lake = lake
        self._lake: Lake | None = None
        """Open until a refresh fails."""
        self._upkeep_due = self._due
        """Monotonic time, in seconds, from which a turn may begin upkeep."""
        self._pool, self._run_upkeep = pool, best_effort(_run_upkeep, "upkeep")
        self._upkeep: Future[None] | None = None
        self._beside, self._follow_canary = beside, best_effort(follow_canary, "serving the canary")
        self._following: Future[None] | None = None
        self._publication: Future[None] | None = None
        self._replaced: Info | None = None
        """What the warehouse of `_publication` reflects."""
        self._derived: Info | None = None
        """What the draft reflects; None after a refresh that failed."""

    def seconds_left(self) -> float:
        """Return how long the next turn may wait for a commit, in seconds."""
        return 0.0 if self._publisher.is_in_round() else max(0.0, self._due - time.monotonic())

    def turn(self, *, last: bool) -> None:
        """Serve the affected users; when due, also deferred users, and replace the warehouse.

        The `last` turn serves all of them, unless nothing was recorded in the lake since the last refresh, and replaces
        a warehouse that has erased events.
        """
        due = last or self._has_failed() or time.monotonic() >= self._due
        if last:
            self._publisher.settle()
            if self._has_everything():
                self._finish()
                return
        derived = self._derive(Draft.refresh_light_users)
        try:
            self._serve(derived)
            if due and self._draft.deferred_users():
                derived = self._derive(Draft.refresh)
                self._serve(derived)
            if due:
                self._publisher.finish(derived, self._draft.tables)
            elif time.monotonic() >= self._upkeep_due:
                self._begin_upkeep()
        finally:
            if last:
                self._finish()
            elif due:
                self._replace_warehouse()

    def _derive(self, how: RefreshMethod) -> DerivationResult:
        """Bring the draft up to date with the lake and the current time."""
        self._derived = None
        try:
            self._run_lake.check()
            self._lake = self._lake or CachedLake(self._run_lake.open().root)
            derived = derive_draft(self._draft, self._lake, self._settings, self._clock.now(), how)
        except BaseException as error:
            self._lake = None
            self._publisher.add(None)  # the affected users are unknown
            if isinstance(error, PolicyError | ConfigurationError) and self.has_derived:  # an edit ends no ingest
                raise TransientError(f"{error}; scores stay as they are until it is corrected") from error
            raise
        self.has_derived, self._derived = True, self._draft.tables.info
        self._publisher.add(derived.changed_users)
        if derived.has_decayed:
            self._publisher.begin_round()
        return derived

    def _serve(self, derived: DerivationResult) -> None:
        if not self._knows_published:
            newest = latest_as_of(self._settings)
            self._clock.advance_to(newest)
            self._knows_published = True
            if newest is not None and newest > derived.as_of:
                derived = self._derive(Draft.refresh)
        self._publisher.publish(derived, self._draft.tables)

    def _replace_warehouse(self) -> None:
        """Start a publication, unless one is in progress; wait for it after one that failed."""
        if self._publication is None or self._publication.done():
            wait_for_it = self._has_failed()
            publication, replaced = self._start_publication()
            self._uploader.offer(publication, replaced.erasures)
            if wait_for_it:
                publication.result()
        interval = self._settings.reputation.derive_interval_seconds
        self._due = time.monotonic() + interval
        if self._upkeep_due <= time.monotonic():
            self._begin_upkeep()
        self._upkeep_due = self._due - interval / 2
        if self._following is None or self._following.done():
            self._following = self._beside.submit(self._follow_canary, self._settings)

    def _begin_upkeep(self) -> None:
        """Merge small files beside the next turns; with few commits, the turn that replaces the warehouse begins it."""
        self._upkeep_due = inf
        if not self._settings.reputation.pinned and (self._upkeep is None or self._upkeep.done()):
            self._upkeep = self._pool.submit(self._run_upkeep, self._settings)

    def _start_publication(self) -> tuple["Future[None]", Info]:
        """Start a publication of all users; return it with what it reflects."""
        if self._draft.deferred_users():
            self._derive(Draft.refresh)
        self._publication, self._replaced = self._draft.start_publication(), self._draft.tables.info
        return self._publication, self._replaced

    def _finish(self) -> None:
        """Wait for the publication in progress and its upload; repeat one that failed, or has erased events."""
        if self._derived is None:  # a refresh failed, whose error is raised
            return
        publication, replaced = self._publication, self._replaced
        if publication is not None:
            wait([publication])
        if publication is None or replaced is None or self._has_failed() or replaced.erasures != self._derived.erasures:
            publication, replaced = self._start_publication()
        self._uploader.finish(publication, replaced.erasures)
        publication.result()

    def _has_everything(self) -> bool:
        """Return whether the store has all that the lake has."""
        if self._lake is None or self._derived is None or self._draft.deferred_users() or self._has_failed():
            return False
        return self._publisher.is_complete() and reflects_lake(self._derived, self._lake, self._settings)

    def _has_failed(self) -> bool:
        """Return whether the last publication failed; its error is that of the next one, which repeats it."""
        return self._publication is not None and self._publication.done() and bool(self._publication.exception())


def _run_upkeep(settings: Settings) -> None:
    """Merge small files, and remove files that no reader needs.

    Tables are opened once per call, and not kept: a lake that was restored from a copy meanwhile has other files.
    """
    lake = CachedLake(open_lake(settings.lake_root).root)
    try:
        compact(lake, settings.lake.compact_after_files)
    except TransientError as error:
        _LOG.info("compaction: %s", error)
    drop = partial(drop_old_changes, lake, settings.feed)
    removed = vacuum_when_due(lake, settings.lake, settings.data_dir / "vacuumed", drop)
    if removed:
        _LOG.info("vacuum: removed %d files", len(removed))
