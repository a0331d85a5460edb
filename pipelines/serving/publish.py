"""Publish documents to Redis: what changed since the last publication, or everything if Redis does not hold that one.

Owns what is written and what is deleted. The steps that make it safe beside other publishers and crashes, and what
each of them leaves, are `publication.py`; what was published last is `state.py`.

Everything is written, and every document of a user who is not among the new ones is deleted, when the id of the
last publication in Redis is not the one in `state_dir`: Redis was emptied or restored, another publisher was here,
a publication was interrupted, the folder is new. What does not show is a document that something else deleted or
evicted: give Redis `maxmemory-policy noeviction`, and after a mishap delete `{prefix}.publication`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.errors import UsageError
from pipelines.serving.client import connect, explained
from pipelines.serving.keys import document_key_pattern, document_prefix
from pipelines.serving.publication import Publication, Stamp, begin, finish, remove, write
from pipelines.serving.state import load, save
from pipelines.settings import RedisSettings

DOCUMENTS = pl.Schema({"user_id": pl.String, "document": pl.String, "digest": pl.UInt64})
"""One row a user: the document as JSON, and a digest of all in it that makes it worth writing again."""

_CHUNK_DOCUMENTS = 2_000
_CHUNK_BYTES = 1024 * 1024
"""Readers wait for as long as Redis takes for one chunk: about 10 ms."""
_SCAN_COUNT = 5_000


@dataclass(frozen=True, slots=True)
class Published:
    """What one publication did, in documents; `full` if it could not build on the one before."""

    written: int
    deleted: int
    unchanged: int
    full: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class _Changes:
    """What a publication has to do: documents to set, as `DOCUMENTS`, and keys to delete."""

    written: pl.DataFrame
    deleted: pl.Series


def publish(documents: pl.DataFrame, stamp: Stamp, redis: RedisSettings, state_dir: Path) -> Published:
    """Make Redis hold exactly these documents (`DOCUMENTS`, all users, each once) under this stamp.

    Readers see each document whole, old or new, until the call returns. A crash anywhere leaves documents of this
    publication and the one before, and the next publication writes everything (`publication.py`).
    Raises FencedError if something newer is, or is being, published; TransientError if Redis does not answer or
    lost its data meanwhile; ConfigurationError if it refuses; UsageError for columns that are no `DOCUMENTS`.
    """
    started = time.monotonic()
    _check(documents)
    with connect(redis) as client, explained(client, "publishing"):
        publication = begin(client, redis.prefix, stamp)
        last = load(state_dir, publication.previous_id)
        changes = _everything(documents, publication) if last is None else _changed(documents, last, redis.prefix)
        _write(publication, changes.written)
        _remove(publication, changes.deleted)
        finish(publication, documents.height)
    save(state_dir, publication.id, documents.select("user_id", "digest"))
    written, deleted = changes.written.height, changes.deleted.len()
    return Published(written, deleted, documents.height - written, last is None, time.monotonic() - started)


def document_keys(prefix: str, user_ids: pl.Series) -> pl.Series:
    """Return the keys of many users' documents, as Binary."""
    return (document_prefix(prefix) + user_ids).cast(pl.Binary)


def _check(documents: pl.DataFrame) -> None:
    if documents.schema != DOCUMENTS:
        raise UsageError(f"documents to publish must have the columns {DOCUMENTS}, not {documents.schema}")
    if documents.null_count().sum_horizontal().item():
        raise UsageError("documents to publish must not hold nulls: each row is one user's document and its digest")
    if documents["user_id"].n_unique() != documents.height:
        raise UsageError("documents to publish must hold each user once: the same user_id stands in several rows")


def _everything(documents: pl.DataFrame, publication: Publication) -> _Changes:
    """Return all documents, and the keys of those that Redis holds and that are not among them.

    Nobody else writes once it has begun, so what SCAN finds now is all there is.
    """
    keys = document_keys(publication.prefix, documents["user_id"])
    found = pl.concat(_pages(publication)).unique().to_frame("key")
    return _Changes(documents, found.join(keys.to_frame("key"), on="key", how="anti")["key"])


def _pages(publication: Publication) -> Iterator[pl.Series]:
    """Yield the keys of documents as SCAN gives them: some twice, pages of any length, at least one page."""
    cursor = None
    while cursor != 0:
        cursor, page = publication.client.scan(
            cursor or 0, match=document_key_pattern(publication.prefix), count=_SCAN_COUNT
        )
        yield pl.Series(page, dtype=pl.Binary)


def _changed(documents: pl.DataFrame, last: pl.DataFrame, prefix: str) -> _Changes:
    gone = last.join(documents, on="user_id", how="anti")["user_id"]
    changed = documents.join(last, on=["user_id", "digest"], how="anti")
    return _Changes(changed, document_keys(prefix, gone))


def _write(publication: Publication, documents: pl.DataFrame) -> None:
    keys = document_keys(publication.prefix, documents["user_id"])
    values = documents["document"].cast(pl.Binary)
    for first, length in _chunks(keys.bin.size() + values.bin.size()):
        write(publication, keys.slice(first, length).to_list(), values.slice(first, length).to_list())


def _remove(publication: Publication, keys: pl.Series) -> None:
    for first, length in _chunks(keys.bin.size()):
        remove(publication, keys.slice(first, length).to_list())


def _chunks(sizes: pl.Series) -> Iterator[tuple[int, int]]:
    """Yield (first, length) of consecutive runs within both bounds; a row larger than the bound is a run of its own."""
    ends = sizes.cast(pl.UInt64).cum_sum().to_numpy()
    first, before = 0, 0
    while first < len(ends):
        fitting = int(ends.searchsorted(before + _CHUNK_BYTES, side="right"))
        end = max(first + 1, min(fitting, first + _CHUNK_DOCUMENTS))
        yield first, end - first
        first, before = end, int(ends[end - 1])
