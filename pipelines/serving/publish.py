"""Publish documents to a store: the changes since the last publication, or everything if the store lacks it.

Owns which documents are built, written and deleted, in the order begin, write, remove, finish. Each part of the
documents is built, compared, written and dropped; only digests remain. What each step changes, and what a crash after
it leaves, belongs to the store: `publication.py` for Redis, `cassandra_store.py`. `publication_state.py` holds what was
published last.

A publication is full, which means that it writes every document and deletes those of all other users, when the id of
the last publication in the store differs from the one in the digest cache: the store was emptied or restored, another
publisher has published, a publication was interrupted, or the cache was not saved or is new. It is also full when the
configured leaderboards differ from the published ones.
A document that another program wrote, deleted or evicted goes unnoticed: give Redis `maxmemory-policy noeviction`, and
after an accident run `karmalake publish --full`, which discards the cache.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import polars as pl

from pipelines.errors import UsageError
from pipelines.serving.digest_cache import DigestCache
from pipelines.serving.digests import DIGESTS, Digests
from pipelines.serving.leaderboards import score_column
from pipelines.serving.publication_state import Stamp
from pipelines.serving.store import PublicationWriter, StoreSettings, open_store

DOCUMENTS = pl.Schema({"user_id": pl.String, "document": pl.String, "digest": pl.UInt64})
"""One row per user: the document as JSON, and a digest of everything in it that requires writing it again.

For each view of `redis.leaderboards`, in that order, a column `{view}_score` follows (Float64): the user's score there,
null for a user who is not ranked. It must not change unless the digest does.
"""
Documents = Callable[[pl.Series | None], Generator[pl.DataFrame]]
"""Builds documents, as `DOCUMENTS`: of all users (None), or of those among the named users who have one.

Part by part, so that the documents of all users are never in memory at once.
"""
_NO_DIGESTS = pl.DataFrame(schema=DIGESTS)


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What one publication did, in documents; `full` if it could not build on the previous one.

    `written` plus `unchanged` is the total number of documents; `changes` are those recorded in the feed, None without
    a feed.
    """

    written: int
    deleted: int
    unchanged: int
    full: bool
    seconds: float
    changes: int | None


def publish(
    documents: Documents,
    stamp: Stamp,
    where: StoreSettings,
    state: DigestCache,
    changed: pl.Series | None = None,
    record_changes: Callable[[], int | None] = lambda: None,
) -> PublishResult:
    """Make the store hold exactly the documents of all users under this stamp, with the fewest writes.

    Maintains the leaderboards that `redis.leaderboards` names, and no others.
    `changed` (String, user_id) names the users whose document may differ from the publication that `state` remembers,
    or be missing; None means that any may. The caller must not omit anyone: an omitted user keeps the previous
    document, unnoticed until the store or the cache is lost. So a caller keeps the names until a call with them has
    returned, and passes None at first, for a cache that was read from disk.
    `documents(changed)` is called first; `documents(None)` if the store does not hold that publication.
    `record_changes` is called when everything is written and the publication is not yet the published one; it returns
    `changes` of the result, and its error leaves an interrupted publication.

    Until the call returns, readers see each document whole, old or new, with the matching leaderboard scores. A crash
    anywhere leaves documents of this publication and the previous one, and the next publication is full. So is the
    next one after a crash before the cache was saved. An error of `documents` in its first part leaves the store as it
    was, one in a later part an interrupted publication.
    Raises FencedError if something newer is, or is being, published; TransientError if the store does not respond or
    lost its data during the publication; ConfigurationError if it refuses; UsageError for columns not as `DOCUMENTS`.
    """
    started = time.monotonic()
    with open_store(where) as store, ExitStack() as building:
        last_id = store.complete_id()
        last = state.digests(last_id, store.leaderboards)
        users = None if last is None else changed
        parts = building.enter_context(_begin_to_build(documents, users, store.leaderboards))
        writing = store.begin(stamp)
        if last is not None and writing.previous_id != last_id:  # another publisher has begun
            building.close()
            last, users = None, None
            parts = building.enter_context(_begin_to_build(documents, users, store.leaderboards))
        stored, before = (writing.stored_users(), Digests(_NO_DIGESTS)) if last is None else (None, last)
        built = _write_parts(writing, parts, before)
        removed = _removed(built.digests, before, users) if stored is None else _strangers(built.digests, stored)
        count = built.digests.height + (0 if users is None else len(before) - built.known - removed.len())
        writing.remove(removed)
        changes = record_changes()
        writing.finish(count)
    state.remember(writing.id, store.leaderboards, _digests_after(built.digests, before, users, removed))
    seconds = time.monotonic() - started
    return PublishResult(built.written, removed.len(), count - built.written, last is None, seconds, changes)


@dataclass(frozen=True, slots=True)
class _Built:
    """The documents that were built, and compared with those before."""

    digests: pl.DataFrame
    """Of all of them, as `DIGESTS`."""
    written: int
    """How many were written, because they differ."""
    known: int
    """How many users among them had a document before."""


@contextmanager
def _begin_to_build(
    documents: Documents, users: pl.Series | None, leaderboards: Sequence[str]
) -> Generator[Iterator[pl.DataFrame]]:
    """Yield the parts of the documents of all users or of the named ones, validated; the first is built already.

    No query remains open afterwards, whatever fails in between. So the builder itself is closed: a closed generator
    around it would keep it open in Python 3.12.3 until no traceback refers to that one.
    """
    with closing(documents(users)) as built:
        parts = map(partial(_validated, users, leaderboards), built)
        yield chain([*islice(parts, 1)], parts)


def _validated(users: pl.Series | None, leaderboards: Sequence[str], part: pl.DataFrame) -> pl.DataFrame:
    """Return a part of the documents of all users or of the named ones. Raises UsageError if it is of another shape."""
    schema = pl.Schema({**DOCUMENTS, **{score_column(view): pl.Float64() for view in leaderboards}})
    if part.schema != schema:
        raise UsageError(f"documents to publish must have the columns {schema}, not {part.schema}")
    if part.select(DOCUMENTS.names()).null_count().sum_horizontal().item():
        raise UsageError(
            "documents to publish must not hold nulls: each row is the document of one user and its digest"
        )
    _require_unique(part)
    if users is not None and not part["user_id"].is_in(users.implode()).all():
        raise UsageError("documents to publish must belong to the requested users only")
    return part


def _require_unique(documents: pl.DataFrame) -> None:
    if documents["user_id"].n_unique() != documents.height:
        raise UsageError("documents to publish must contain each user once: the same user_id is in several rows")


def _write_parts(writing: PublicationWriter, parts: Iterator[pl.DataFrame], before: Digests) -> _Built:
    """Write the documents that differ from those before, part by part."""
    digests, written, known = [_NO_DIGESTS], 0, 0
    for part in parts:
        known_digests = before.of(part["user_id"])
        different = part.join(known_digests, on=["user_id", "digest"], how="anti")
        writing.write(different)
        written, known = written + different.height, known + known_digests.height
        digests.append(_copied(part.select(DIGESTS.names())))
    built = _Built(pl.concat(digests), written, known)
    _require_unique(built.digests)
    return built


def _copied(rows: pl.DataFrame) -> pl.DataFrame:
    """Return a copy of rows: the columns of a part share its memory, which the documents are in."""
    return pl.read_ipc_stream(rows.write_ipc_stream(None).getvalue())


def _strangers(digests: pl.DataFrame, stored: pl.Series) -> pl.Series:
    """Return the users of the store (Binary) who have no document."""
    users = digests["user_id"].cast(pl.Binary).to_frame("user")
    return stored.to_frame("user").join(users, on="user", how="anti")["user"]


def _removed(digests: pl.DataFrame, before: Digests, users: pl.Series | None) -> pl.Series:
    """Return the users (Binary) who had a document and have none now, among all users or the named ones."""
    if users is None:
        found = before.all().join(digests, on="user_id", how="anti")
    else:
        found = before.of(users.to_frame("user_id").join(digests, on="user_id", how="anti")["user_id"])
    return found["user_id"].cast(pl.Binary)


def _digests_after(digests: pl.DataFrame, before: Digests, users: pl.Series | None, removed: pl.Series) -> Digests:
    """Return the digests of all documents after the documents of all users, or of the named ones, were published."""
    if users is None:
        return Digests(digests)
    before.update(digests, removed.cast(pl.String))
    return before
