"""Publish documents to a store: the changes since the last publication, or everything if the store lacks it.

Owns which documents are built, written and deleted, in the order begin, write, remove, finish. What each step changes,
and what a crash after it leaves, belongs to the store: `publication.py` for Redis, `cassandra_store.py`.
`publication_state.py` holds what was published last.

A publication is full, which means that it writes every document and deletes those of all other users, when the id of
the last publication in the store differs from the one in the digest cache: the store was emptied or restored, another
publisher has published, a publication was interrupted, or the cache was not saved or is new. It is also full when the
configured leaderboards differ from the published ones.
A document that another program wrote, deleted or evicted goes unnoticed: give Redis `maxmemory-policy noeviction`, and
after an accident run `karmalake publish --full`, which discards the cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from pipelines.errors import UsageError
from pipelines.serving.digest_cache import DigestCache
from pipelines.serving.digests import DIGESTS, Digests
from pipelines.serving.leaderboards import score_column
from pipelines.serving.publication_state import Stamp
from pipelines.serving.store import StoreSettings, open_store

DOCUMENTS = pl.Schema({"user_id": pl.String, "document": pl.String, "digest": pl.UInt64})
"""One row per user: the document as JSON, and a digest of everything in it that requires writing it again.

For each view of `redis.leaderboards`, in that order, a column `{view}_score` follows (Float64): the user's score there,
null for a user who is not ranked. It must not change unless the digest does.
"""
Documents = Callable[[pl.Series | None], pl.DataFrame]
"""Builds documents, as `DOCUMENTS`: of all users (None), or of those among the named users who have one."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What one publication did, in documents; `full` if it could not build on the previous one.

    `written` plus `unchanged` is the total number of documents.
    """

    written: int
    deleted: int
    unchanged: int
    full: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class _Changes:
    """The changes to publish."""

    written: pl.DataFrame
    """Documents to set, as `DOCUMENTS`."""
    deleted: pl.Series
    """Users (Binary) whose documents to delete."""
    documents: int
    """How many documents there are afterwards."""


def publish(
    documents: Documents,
    stamp: Stamp,
    where: StoreSettings,
    state: DigestCache,
    changed: pl.Series | None = None,
    before_finish: Callable[[], None] = lambda: None,
) -> PublishResult:
    """Make the store hold exactly the documents of all users under this stamp, with the fewest writes.

    Maintains the leaderboards that `redis.leaderboards` names, and no others.
    `changed` (String, user_id) names the users whose document may differ from the publication that `state` remembers,
    or be missing; None means that any may. The caller must not omit anyone: an omitted user keeps the previous
    document, unnoticed until the store or the cache is lost. So a caller keeps the names until a call with them has
    returned, and passes None at first, for a cache that was read from disk.
    `documents(changed)` is called first; `documents(None)` if the store does not hold that publication.
    `before_finish` is called when everything is written and the publication is not yet the published one; its error
    leaves an interrupted publication.

    Until the call returns, readers see each document whole, old or new, with the matching leaderboard scores. A crash
    anywhere leaves documents of this publication and the previous one, and the next publication is full. So is the
    next one after a crash before the cache was saved.
    Raises FencedError if something newer is, or is being, published; TransientError if the store does not respond or
    lost its data during the publication; ConfigurationError if it refuses; UsageError for columns not as `DOCUMENTS`.
    """
    started = time.monotonic()
    with open_store(where) as store:
        last_id = store.complete_id()
        last = state.digests(last_id, store.leaderboards)
        made = _build_documents(documents, None if last is None else changed, store.leaderboards)
        writing = store.begin(stamp)
        if last is not None and writing.previous_id != last_id:  # another publisher has begun
            last, made = None, _build_documents(documents, None, store.leaderboards)
        changes = (
            _full_changes(made, writing.stored_users()) if last is None else _incremental_changes(made, last, changed)
        )
        writing.write(changes.written)
        writing.remove(changes.deleted)
        before_finish()
        writing.finish(changes.documents)
    state.remember(writing.id, store.leaderboards, _digests_after(made, last, changes.deleted))
    written, unchanged = changes.written.height, changes.documents - changes.written.height
    return PublishResult(written, changes.deleted.len(), unchanged, last is None, time.monotonic() - started)


def _build_documents(documents: Documents, users: pl.Series | None, leaderboards: Sequence[str]) -> pl.DataFrame:
    """Build and validate the documents of all users or of the named ones."""
    made = documents(users)
    schema = pl.Schema({**DOCUMENTS, **{score_column(view): pl.Float64() for view in leaderboards}})
    if made.schema != schema:
        raise UsageError(f"documents to publish must have the columns {schema}, not {made.schema}")
    if made.select(DOCUMENTS.names()).null_count().sum_horizontal().item():
        raise UsageError(
            "documents to publish must not hold nulls: each row is the document of one user and its digest"
        )
    if made["user_id"].n_unique() != made.height:
        raise UsageError("documents to publish must contain each user once: the same user_id is in several rows")
    if users is not None and not made["user_id"].is_in(users.implode()).all():
        raise UsageError("documents to publish must belong to the requested users only")
    return made


def _full_changes(documents: pl.DataFrame, stored: pl.Series) -> _Changes:
    """Return the changes of a full publication: every document, and the stored users who have none."""
    users = documents["user_id"].cast(pl.Binary)
    removed = stored.to_frame("user").join(users.to_frame("user"), on="user", how="anti")["user"]
    return _Changes(documents, removed, documents.height)


def _incremental_changes(documents: pl.DataFrame, last: Digests, changed: pl.Series | None) -> _Changes:
    """Return how the documents, of all users or of those in `changed`, differ from the last publication."""
    before = last.all() if changed is None else last.of(changed)
    removed = before.join(documents, on="user_id", how="anti")["user_id"]
    written = documents.join(before, on=["user_id", "digest"], how="anti")
    return _Changes(written, removed.cast(pl.Binary), len(last) + documents.height - before.height)


def _digests_after(documents: pl.DataFrame, last: Digests | None, removed: pl.Series) -> Digests:
    """Return the digests of all documents after a publication of these, full (last is None) or on the last one."""
    digests = documents.select(DIGESTS.names())
    if last is None:
        return Digests(digests)
    last.update(digests, removed.cast(pl.String))
    return last
