"""Erasure of users from everything that karmalake stores: lake, indexes, warehouse, caches, documents (`erasable`).

An erasure completes, or is refused before anything is changed. `erase_limits.py` lists what it does not reach.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.errors import UsageError
from pipelines.lake.erasure import ErasureCounts, erase_users
from pipelines.lake.index import forget_erased
from pipelines.lake.mentions import Mentions, count_mentions
from pipelines.lake.tables import open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.refresh import publish_draft, publish_warehouse, refresh_draft
from pipelines.reputation.derive import is_draft_open, open_draft
from pipelines.reputation.histories import delete_histories, histories_folder
from pipelines.reputation.warehouse_upload import uploaded
from pipelines.serving.digest_cache import delete_digest_cache
from pipelines.serving.publish import PublishResult
from pipelines.serving.read import published, read_reputation
from pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Erasure:
    """The outcome of an erasure: rows removed from the lake, and the publication without the users."""

    rows: ErasureCounts
    refreshed_elsewhere: bool
    """Whether another process, such as `karmalake stream`, holds the warehouse, and derives and publishes it."""
    published: PublishResult | None
    """None if nothing was published before, documents were excluded, or another process publishes."""


def erase(settings: Settings, user_ids: Sequence[str], tombstones: Collection[str] = ()) -> Erasure:
    """Erase users, and the users in tombstones of another lake, including their documents.

    A kill at any step leaves a consistent lake; erasing again finishes. Raises before anything is changed: UsageError
    if there is no lake or no document store is configured, TransientError if the store does not answer. Raises
    TransientError later if other processes kept committing.
    """
    open_lake(settings.lake_root)
    if not settings.has_document_store:
        raise UsageError(
            "no document store is configured, so the users' documents cannot be deleted; nothing was erased. Set "
            "redis.url (KARMALAKE_REDIS_URL) or cassandra.hosts to the publisher's, or pass --without-documents if "
            "there are no documents"
        )
    served = published(settings) is not None or any(read_reputation(user_id, settings) for user_id in user_ids)
    return _erase(settings, user_ids, tombstones, served=served)


def erase_without_documents(settings: Settings, user_ids: Sequence[str], tombstones: Collection[str] = ()) -> Erasure:
    """Erase users like `erase`, but not their documents: for a document store that no longer exists, or never did."""
    return _erase(settings, user_ids, tombstones, served=False)


def mentions_of_erased(settings: Settings) -> Mentions:
    """Count mentions of erased users, now or earlier, in other users' rows. Reads all events."""
    lake = open_lake(settings.lake_root)
    return count_mentions(lake, open_tombstones(lake, settings))


def _erase(settings: Settings, user_ids: Sequence[str], digests: Collection[str], *, served: bool) -> Erasure:
    lake, path = open_lake(settings.lake_root), settings.warehouse_path
    tombstones = open_tombstones(lake, settings)
    rows = erase_users(lake, tombstones, user_ids, digests)
    forget_erased(settings.index_dir, lake, lake.table("events"))
    if is_draft_open(path):
        return Erasure(rows, refreshed_elsewhere=True, published=None)
    with open_draft(path) as draft:
        if served or path.exists() or uploaded(settings.lake_root):
            refresh_draft(draft, lake, settings)
            publish_draft(draft, settings)
        else:
            delete_histories(histories_folder(path))
    if not served:
        delete_digest_cache(settings.published_dir)
    done = publish_warehouse(settings) if served else None
    return Erasure(rows, refreshed_elsewhere=False, published=done)
