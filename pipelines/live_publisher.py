"""Publishing beside refreshes: while one publication is written to the store, the next refresh is computed.

Documents are built from the tables of the draft, in the thread that refreshes; another thread writes them to the store.
A user whose document may differ is noted until it is published, whatever fails in between. A step of decay changes the
documents of all users: they are published in a round, some with each publication, so that events do not wait for them.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial

import polars as pl

from pipelines.feed import Feed, Record, Shown
from pipelines.refresh import publish_views
from pipelines.reputation.derive import DerivationResult
from pipelines.reputation.draft_tables import DraftTables
from pipelines.reputation.user_rows import HASHES
from pipelines.reputation.warehouse_file import Info
from pipelines.serving.digest_cache import DigestCache
from pipelines.serving.publish import PublishResult
from pipelines.settings import Settings

OnRefresh = Callable[[DerivationResult, PublishResult], None]
_NO_USERS = pl.Series("user_id", [], dtype=pl.String)
_ROUND_USERS = 10_000
"""So many users of a round are published at a time: making their documents takes about a tenth of a second."""
_DocumentsOf = Callable[[pl.Series | None, Sequence[str]], Generator[pl.DataFrame]]


class _AllNeededError(Exception):
    """The store does not hold the last publication, so the documents of all users have to be published."""


class LivePublisher:
    """Publishes the documents that refreshes of one draft change, one publication at a time. Not thread-safe.

    pool: writes to the store.
    on_published: called after each publication, in the thread that wrote it.
    on_failure: called in the thread of `pool` if a publication fails; the next `publish` or `finish` raises its error.
    feed: records what each publication changes.
    """

    def __init__(
        self,
        settings: Settings,
        digests: DigestCache,
        pool: Executor,
        on_published: OnRefresh,
        on_failure: Callable[[], None],
        feed: Feed | None = None,
    ) -> None:
        self._settings, self._digests, self._pool = settings, digests, pool
        self._on_published, self._on_failure, self._feed = on_published, on_failure, feed
        self._unpublished: pl.Series | None = None  # None: any document may differ
        self._writing: Future[None] | None = None
        self._written: pl.Series | None = None
        self._has_failed = False
        self._round_at, self._round_left = 0, 0  # where a round continues, and how much of the range of hashes is left

    def add(self, users: pl.Series | None) -> None:
        """Note users (String) whose documents may differ from the published ones; None: any may."""
        self._unpublished = _union(self._unpublished, users)

    def begin_round(self) -> None:
        """Let each of the next publications add some users, until all have had their turn.

        For a change of all documents that newer events shall not wait for. A round in progress continues from where it
        is, until every user has had another turn.
        """
        self._round_left = HASHES

    def is_in_round(self) -> bool:
        """Return whether users are left whom `begin_round` lets publications add."""
        return self._round_left > 0

    def publish(self, derived: DerivationResult, tables: DraftTables) -> None:
        """Begin to publish the documents of the users noted; if those are all users, or after an error, complete it.

        Waits for the publication before, and raises its error; the users of both remain noted then. Raises like
        `refresh.publish_warehouse`.
        """
        self._add_of_round(tables)
        users = self._unpublished
        made, made_shown = self._make(users, tables)
        self._wait()
        if made is None or self._unpublished is None:
            shown = Shown(tables.shown_users, tables.shown_rows, tables.recent_events)
            record = self._feed and partial(self._feed.record, shown)
            self._write(derived, tables.info, tables.document_parts, None, record)
            self._unpublished, self._round_left = _NO_USERS, 0
        else:
            record = self._record(users, made_shown, tables)
            self._writing = self._pool.submit(self._write, derived, tables.info, _among(made), users, record)
            self._written, self._unpublished = users, _NO_USERS
            self._writing.add_done_callback(lambda done: self._on_failure() if done.exception() else None)
            if self._has_failed:
                self.finish(derived, tables)

    def _add_of_round(self, tables: DraftTables) -> None:
        if self._unpublished is None or self._has_failed or not self.is_in_round():
            return  # after a failure, only its users are tried again: more each time would not fit in memory
        users, after = tables.users_from(self._round_at, _ROUND_USERS)
        self.add(users)
        self._round_left = max(0, self._round_left - (after - self._round_at))
        self._round_at = after % HASHES

    def _make(
        self, users: pl.Series | None, tables: DraftTables
    ) -> tuple[Sequence[pl.DataFrame] | None, pl.DataFrame | None]:
        """Return the documents of some users and, for a feed, what is shown of them; of all (None) nothing."""
        ranked = self._settings.document_store.leaderboards
        if users is None:
            return None, None
        if self._feed is None:
            return [*tables.document_parts(users, ranked)], None
        documents, shown = tables.documents_and_shown(users, ranked)
        return [documents], shown

    def _record(self, users: pl.Series | None, shown: pl.DataFrame | None, tables: DraftTables) -> Record | None:
        """Return what records the changes of users whose rows were made; nothing without a feed."""
        if self._feed is None or shown is None or users is None:
            return None
        recent = tables.recent_events(self._feed.since(users))  # after `_wait`: nothing else uses the feed

        def recent_events(_since: pl.DataFrame) -> pl.DataFrame:
            return recent

        return partial(self._feed.record, Shown(_users_of_all, partial(_rows_among, shown), recent_events))

    def settle(self) -> None:
        """Wait for the publication in progress; if it failed, the next `publish` repeats it, without raising its error.

        For the last turn: an error of the publication before must not end it.
        """
        with suppress(Exception):  # its users are noted; an error that lasts comes again
            self._wait()

    def is_complete(self) -> bool:
        """Return whether no document of the users noted is left to publish, a round apart; call it after `settle`."""
        return self._unpublished is not None and self._unpublished.is_empty()

    def finish(self, derived: DerivationResult, tables: DraftTables) -> None:
        """Return when everything that `publish` began is published. Raises like it."""
        self._wait()
        if self._unpublished is None:
            self.publish(derived, tables)

    def _wait(self) -> None:
        """Wait for the publication in progress; if it failed, note its users again."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
            self._has_failed = False
        except _AllNeededError:
            self._unpublished = None
        except Exception:
            self._has_failed = True
            self.add(self._written)
            raise

    def _write(
        self,
        derived: DerivationResult,
        info: Info,
        documents_of: _DocumentsOf,
        users: pl.Series | None,
        record: Record | None,
    ) -> None:
        self._on_published(derived, publish_views(info, documents_of, self._settings, self._digests, users, record))


def _among(documents: Sequence[pl.DataFrame]) -> _DocumentsOf:
    """Return a function that yields documents of some users, which were made before; it cannot make those of all."""

    def documents_of(users: pl.Series | None, _ranked: Sequence[str]) -> Generator[pl.DataFrame]:
        if users is None:
            raise _AllNeededError
        yield from documents

    return documents_of


def _users_of_all() -> pl.Series:
    raise _AllNeededError


def _rows_among(rows: pl.DataFrame, users: pl.Series) -> pl.DataFrame:
    return rows.join(users.to_frame(), on="user_id", how="semi")


def _union(first: pl.Series | None, second: pl.Series | None) -> pl.Series | None:
    """Return the users in either; None means all users."""
    return None if first is None or second is None else pl.concat([first, second]).unique()
