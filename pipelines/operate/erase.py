"""Erasure of users from everything that karmalake stores: lake, indexes, warehouse, caches, documents (`erasable`).

An erasure completes, or is refused before anything is changed. `erase_limits.py` lists what it does not reach.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.canary import follow_canary
from pipelines.errors import UsageError
from pipelines.feed_relay import feed_topic_exists, send_tombstones
from pipelines.feed_state import delete_feed_state
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.erasure import ErasureCounts, erase_users, preview_erasure
from pipelines.lake.index import forget_erased
from pipelines.lake.mentions import Mentions, count_mentions
from pipelines.lake.tables import open_lake
from pipelines.lake.tombstones import keys_of, open_tombstones, tombstone
from pipelines.refresh import publish_draft, publish_warehouse, refresh_draft
from pipelines.reputation.derive import is_draft_open, open_draft
from pipelines.reputation.histories import delete_histories, histories_folder
from pipelines.reputation.merged_users import aliases, merges_of
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

    Each user is erased under all user_ids of the person (`all_names`).
    A kill at any step leaves a consistent lake; erasing again finishes. Raises before anything is changed: UsageError
    if there is no lake or no document store is configured, TransientError if the store, or the broker with the topic of
    the feed, does not answer. Raises TransientError later if other processes kept committing, or the broker fails.
    """
    open_lake(settings.lake_root)
    if not settings.has_document_store:
        raise UsageError(
            "no document store is configured, so the users' documents cannot be deleted; nothing was erased. Set "
            "redis.url (KARMALAKE_REDIS_URL) or cassandra.hosts to the publisher's, or pass --without-documents if "
            "there are no documents"
        )
    names = all_names(settings, user_ids, tombstones)
    served = published(settings) is not None or any(read_reputation(name, settings) for name in names)
    done = _erase(settings, names, tombstones, served=served)
    follow_canary(settings)
    return done


def erase_without_documents(settings: Settings, user_ids: Sequence[str], tombstones: Collection[str] = ()) -> Erasure:
    """Erase users like `erase`, but not their documents: for a document store that no longer exists, or never did."""
    done = _erase(settings, all_names(settings, user_ids, tombstones), tombstones, served=False)
    follow_canary(settings, has_documents=False)
    return done


def preview(settings: Settings, user_ids: Sequence[str], tombstones: Collection[str] = ()) -> ErasureCounts:
    """Return the rows that an erasure of these users would remove or replace, and change nothing. Reads all events.

    Raises UsageError if there is no lake.
    """
    lake = open_lake(settings.lake_root)
    return preview_erasure(lake, open_tombstones(lake, settings), all_names(settings, user_ids, tombstones), tombstones)


def all_names(settings: Settings, user_ids: Sequence[str], tombstones: Collection[str] = ()) -> list[str]:
    """Return user_ids with those that were merged with them or with a user who is erased already.

    tombstones: of another lake, whose users are to be erased, too.
    """
    lake = open_lake(settings.lake_root)
    known = aliases(merges_of(take_snapshot(lake)))
    digests = open_tombstones(lake, settings).digests | set(tombstones)
    keys = keys_of(digests)
    merged = {*known.current, *known.current.values()}
    erased = [name for name in merged if any(tombstone(name.encode(), key) in digests for key in keys)]
    return list(dict.fromkeys(name for user in [*user_ids, *sorted(erased)] for name in known.names(user)))


def mentions_of_erased(settings: Settings) -> Mentions:
    """Count mentions of erased users, now or earlier, in other users' rows. Reads all events."""
    lake = open_lake(settings.lake_root)
    return count_mentions(lake, open_tombstones(lake, settings))


def _erase(settings: Settings, user_ids: Sequence[str], digests: Collection[str], *, served: bool) -> Erasure:
    lake, path = open_lake(settings.lake_root), settings.warehouse_path
    is_relayed = feed_topic_exists(settings)
    tombstones, known = open_tombstones(lake, settings), aliases(merges_of(take_snapshot(lake)))
    named = set(user_ids)

    def announce(users: set[str]) -> None:
        if is_relayed and users:
            send_tombstones(settings, users)

    rows = erase_users(lake, tombstones, named, digests, known.current, lambda found: announce(found - named))
    announce(named)
    forget_erased(settings.index_dir, lake, lake.table("events"))
    if is_draft_open(path):
        return Erasure(rows, refreshed_elsewhere=True, published=None)
    with open_draft(path, settings.reputation) as draft:
        if served or path.exists() or uploaded(settings.lake_root):
            refresh_draft(draft, lake, settings)
            publish_draft(draft, settings)
        else:
            delete_histories(histories_folder(path))
    delete_feed_state(settings.feed_path)
    if not served:
        delete_digest_cache(settings.published_dir)
    done = publish_warehouse(settings) if served else None
    return Erasure(rows, refreshed_elsewhere=False, published=done)
