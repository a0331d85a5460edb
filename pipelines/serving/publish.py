"""Publish documents to a store: what changed since the last publication, or everything if it does not hold that one.

Owns which documents are made, written and deleted. The steps that make it safe beside other publishers and crashes,
and what each of them leaves, are a store's own (`store.py`); what was published last is `state.py`.

Everything is written, and every document of a user who is not among the new ones is deleted, when the id of the
last publication in the store is not the one that the state has: the store was emptied or restored, another publisher
was here, a publication was interrupted, the state was not saved or is new; and when other leaderboards are wanted than
were published.
What does not show is a document that something else wrote, deleted or evicted: give Redis `maxmemory-policy
noeviction`, and after a mishap run `karmalake publish --full`, which forgets the state.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from pipelines.errors import UsageError
from pipelines.serving.bookkeeping import Stamp
from pipelines.serving.leaderboards import score_column
from pipelines.serving.state import State
from pipelines.serving.store import StoreSettings, open_store

DOCUMENTS = pl.Schema({"user_id": pl.String, "document": pl.String, "digest": pl.UInt64})
"""One row a user: the document as JSON, and a digest of all in it that makes it worth writing again.

For each view of `redis.leaderboards`, in that order, a column `{view}_score` follows (Float64): the user's score there,
null for who is not to be on that leaderboard. It may not change while the digest stays.
"""
Documents = Callable[[pl.Series | None], pl.DataFrame]
"""Makes documents, as `DOCUMENTS`: of all users (None), or of those among the named ones who have one."""


@dataclass(frozen=True, slots=True)
class Published:
    """What one publication did, in documents; `full` if it could not build on the one before.

    `written` and `unchanged` together are all documents there are now.
    """

    written: int
    deleted: int
    unchanged: int
    full: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class _Changes:
    """What a publication has to do, and the digests of all documents after it."""

    written: pl.DataFrame
    """Documents to set, as `DOCUMENTS`."""
    deleted: pl.Series
    """Users (Binary) whose documents are to go."""
    digests: pl.DataFrame


def publish(
    documents: Documents, stamp: Stamp, where: StoreSettings, state: State, changed: pl.Series | None = None
) -> Published:
    """Make the store hold exactly the documents of all users under this stamp, and make no more than that takes.

    The same for the leaderboards that `redis.leaderboards` names, and for no others.
    `changed` (String) names the users whose document may be another one, or none any more, than in the publication
    that this `state` remembers; None: anybody's may. The caller answers for it: whoever is missing there keeps the
    document of before, and no later publication notices until the store or the state is lost. So names are kept until
    a call that was given them has returned, and None is passed at first, for a state that was read from its folder.
    `documents(changed)` is asked for first; `documents(None)` if that publication is not what the store holds.

    Until the call returns, readers see each document whole, old or new, and its user in the places that go with it on
    the leaderboards. A crash anywhere leaves documents of this publication and the one before, and the next
    publication writes everything. So does the one after a crash that comes before the state was saved.
    Raises FencedError if something newer is, or is being, published; TransientError if the store does not answer or
    lost its data meanwhile; ConfigurationError if it refuses; UsageError for columns that are no `DOCUMENTS`.
    """
    started = time.monotonic()
    with open_store(where) as store:
        last_id = store.complete_id()
        last = state.digests(last_id, store.leaderboards)
        made = _made(documents, None if last is None else changed, store.leaderboards)
        writing = store.begin(stamp)
        if last is not None and writing.previous_id != last_id:  # another publisher began meanwhile
            last, made = None, _made(documents, None, store.leaderboards)
        changes = _everything(made, writing.held()) if last is None else _changed(made, last, changed)
        writing.write(changes.written)
        writing.remove(changes.deleted)
        writing.finish(changes.digests.height)
    state.remember(writing.id, store.leaderboards, changes.digests)
    written, deleted = changes.written.height, changes.deleted.len()
    return Published(written, deleted, changes.digests.height - written, last is None, time.monotonic() - started)


def _made(documents: Documents, users: pl.Series | None, leaderboards: Sequence[str]) -> pl.DataFrame:
    """Return the documents of all users or of the named ones, checked."""
    made = documents(users)
    schema = pl.Schema({**DOCUMENTS, **{score_column(view): pl.Float64() for view in leaderboards}})
    if made.schema != schema:
        raise UsageError(f"documents to publish must have the columns {schema}, not {made.schema}")
    if made.select(DOCUMENTS.names()).null_count().sum_horizontal().item():
        raise UsageError("documents to publish must not hold nulls: each row is one user's document and its digest")
    if made["user_id"].n_unique() != made.height:
        raise UsageError("documents to publish must hold each user once: the same user_id stands in several rows")
    if users is not None and not made["user_id"].is_in(users.implode()).all():
        raise UsageError("documents to publish must be those of the users asked for, and of nobody else")
    return made


def _everything(documents: pl.DataFrame, held: pl.Series) -> _Changes:
    """Return all documents, and the users of whom the store holds something and who are not among them."""
    users = documents["user_id"].cast(pl.Binary)
    gone = held.to_frame("user").join(users.to_frame("user"), on="user", how="anti")["user"]
    return _Changes(documents, gone, documents.select("user_id", "digest"))


def _changed(documents: pl.DataFrame, last: pl.DataFrame, changed: pl.Series | None) -> _Changes:
    """Return how the documents, of all users or of those in `changed`, differ from the last publication."""
    before, others = last, last.clear()
    if changed is not None:
        named = last["user_id"].is_in(changed.implode())
        before, others = last.filter(named), last.filter(~named)
    gone = before.join(documents, on="user_id", how="anti")["user_id"]
    written = documents.join(before, on=["user_id", "digest"], how="anti")
    digests = pl.concat([others, documents.select("user_id", "digest")])
    return _Changes(written, gone.cast(pl.Binary), digests)
