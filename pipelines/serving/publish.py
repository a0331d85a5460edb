"""Publish documents to Redis: what changed since the last publication, or everything if Redis does not hold that one.

Owns which documents are made, written and deleted. The steps that make it safe beside other publishers and crashes,
and what each of them leaves, are `publication.py`; what was published last is `state.py`.

Everything is written, and every document of a user who is not among the new ones is deleted, when the id of the
last publication in Redis is not the one in `state_dir`: Redis was emptied or restored, another publisher was here,
a publication was interrupted, the folder is new; and when other leaderboards are wanted than were published.
What does not show is a document that something else deleted or evicted: give Redis `maxmemory-policy noeviction`, and
after a mishap delete `{prefix}.publication`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.errors import UsageError
from pipelines.serving.bookkeeping import read_held
from pipelines.serving.client import connect, explained
from pipelines.serving.keys import document_prefix, is_leaderboard, key_pattern, leaderboard_key
from pipelines.serving.leaderboards import placed, ranked_keys, removed, score_column
from pipelines.serving.publication import Publication, Stamp, begin, finish, remove, write
from pipelines.serving.state import load, save
from pipelines.settings import RedisSettings

DOCUMENTS = pl.Schema({"user_id": pl.String, "document": pl.String, "digest": pl.UInt64})
"""One row a user: the document as JSON, and a digest of all in it that makes it worth writing again.

For each view of `redis.leaderboards`, in that order, a column `{view}_score` follows (Float64): the user's score there,
null for who is not to be on that leaderboard. It may not change while the digest stays.
"""
Documents = Callable[[pl.Series | None], pl.DataFrame]
"""Makes documents, as `DOCUMENTS`: of all users (None), or of those among the named ones who have one."""

_CHUNK_COMMANDS = 2_000
"""Documents and places on leaderboards in one chunk."""
_CHUNK_BYTES = 1024 * 1024
"""Readers wait for as long as Redis takes for one chunk: under 10 ms, also with a million users on a leaderboard."""
_SCAN_COUNT = 5_000
_MEMBER_BYTES = 24
"""What a score takes in a command, about."""


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
    """Keys to delete."""
    digests: pl.DataFrame
    unwanted: list[bytes]
    """Keys of leaderboards that are to go."""


def publish(
    documents: Documents, stamp: Stamp, redis: RedisSettings, state_dir: Path, changed: pl.Series | None = None
) -> Published:
    """Make Redis hold exactly the documents of all users under this stamp, and make no more of them than that takes.

    The same for the leaderboards that `redis.leaderboards` names, and for no others.
    `changed` (String) names the users whose document may be another one, or none any more, than in the publication
    that this `state_dir` recorded last; None: anybody's may. The caller answers for it: whoever is missing there keeps
    the document of before, and no later publication notices until Redis or the state is lost. So names are kept until
    a call that was given them has returned, and None is passed when another process may have published from here.
    `documents(changed)` is asked for first; `documents(None)` if that publication is not what Redis holds.

    Until the call returns, readers see each document whole, old or new, and its user in the places that go with it on
    the leaderboards. A crash anywhere leaves documents of this publication and the one before, and the next
    publication writes everything (`publication.py`).
    Raises FencedError if something newer is, or is being, published; TransientError if Redis does not answer or
    lost its data meanwhile; ConfigurationError if it refuses; UsageError for columns that are no `DOCUMENTS`.
    """
    started = time.monotonic()
    with connect(redis) as client, explained(client, "publishing"):
        last_id = read_held(client, redis.prefix).complete_id
        last = load(state_dir, last_id, redis.leaderboards)
        made = _made(documents, None if last is None else changed, redis.leaderboards)
        publication = begin(client, redis.prefix, stamp)
        if last is not None and publication.previous_id != last_id:  # another publisher began meanwhile
            last, made = None, _made(documents, None, redis.leaderboards)
        if last is None:
            changes = _everything(made, publication, redis.leaderboards)
        else:
            changes = _changed(made, last, changed, redis.prefix)
        _write(publication, changes.written, redis.leaderboards)
        _remove(publication, changes.deleted, redis.leaderboards)
        finish(publication, changes.digests.height, redis.leaderboards, changes.unwanted)
    save(state_dir, publication.id, redis.leaderboards, changes.digests)
    written, deleted = changes.written.height, changes.deleted.len()
    return Published(written, deleted, changes.digests.height - written, last is None, time.monotonic() - started)


def document_keys(prefix: str, user_ids: pl.Series) -> pl.Series:
    """Return the keys of many users' documents, as Binary."""
    return (document_prefix(prefix) + user_ids).cast(pl.Binary)


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


def _everything(documents: pl.DataFrame, publication: Publication, leaderboards: Sequence[str]) -> _Changes:
    """Return all documents, the keys of those that Redis holds and that are not among them, and leaderboards to drop.

    Nobody else writes once it has begun, so what SCAN and ZRANGE find now is all there is. A user who is on a
    leaderboard, but without a document, counts as a document that is there.
    """
    client, prefix = publication.client, publication.prefix
    found = pl.concat(_pages(publication))
    are_documents = found.bin.starts_with(document_prefix(prefix).encode())
    held = pl.concat([found.filter(are_documents), *ranked_keys(client, prefix, leaderboards)]).unique()
    keys = document_keys(prefix, documents["user_id"])
    gone = held.to_frame("key").join(keys.to_frame("key"), on="key", how="anti")["key"]
    wanted = {leaderboard_key(prefix, view) for view in leaderboards}
    others = found.filter(~are_documents).unique()
    unwanted = [key for key in others if is_leaderboard(prefix, key) and key not in wanted]
    return _Changes(documents, gone, documents.select("user_id", "digest"), unwanted)


def _pages(publication: Publication) -> Iterator[pl.Series]:
    """Yield keys as SCAN gives them: some twice, and some of others; pages of any length, at least one page."""
    cursor = None
    while cursor != 0:
        cursor, page = publication.client.scan(cursor or 0, match=key_pattern(publication.prefix), count=_SCAN_COUNT)
        yield pl.Series(page, dtype=pl.Binary)


def _changed(documents: pl.DataFrame, last: pl.DataFrame, changed: pl.Series | None, prefix: str) -> _Changes:
    """Return how the documents, of all users or of those in `changed`, differ from the last publication."""
    before, others = last, last.clear()
    if changed is not None:
        named = last["user_id"].is_in(changed.implode())
        before, others = last.filter(named), last.filter(~named)
    gone = before.join(documents, on="user_id", how="anti")["user_id"]
    written = documents.join(before, on=["user_id", "digest"], how="anti")
    digests = pl.concat([others, documents.select("user_id", "digest")])
    return _Changes(written, document_keys(prefix, gone), digests, [])


def _write(publication: Publication, documents: pl.DataFrame, leaderboards: Sequence[str]) -> None:
    keys = document_keys(publication.prefix, documents["user_id"])
    values = documents["document"].cast(pl.Binary)
    member_sizes = documents["user_id"].str.len_bytes() + _MEMBER_BYTES
    for first, length in _chunks(keys.bin.size() + values.bin.size() + len(leaderboards) * member_sizes, leaderboards):
        places = placed(publication.prefix, leaderboards, documents.slice(first, length))
        write(publication, keys.slice(first, length).to_list(), values.slice(first, length).to_list(), places)


def _remove(publication: Publication, keys: pl.Series, leaderboards: Sequence[str]) -> None:
    for first, length in _chunks(keys.bin.size() * (1 + len(leaderboards)), leaderboards):
        chunk = keys.slice(first, length).to_list()
        remove(publication, chunk, removed(publication.prefix, leaderboards, chunk))


def _chunks(sizes: pl.Series, leaderboards: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield (first, length) of consecutive runs within both bounds; a row larger than the bound is a run of its own."""
    most = max(1, _CHUNK_COMMANDS // (1 + len(leaderboards)))
    ends = sizes.cast(pl.UInt64).cum_sum().to_numpy()
    first, before = 0, 0
    while first < len(ends):
        fitting = int(ends.searchsorted(before + _CHUNK_BYTES, side="right"))
        end = max(first + 1, min(fitting, first + most))
        yield first, end - first
        first, before = end, int(ends[end - 1])
