"""The erasure of users from everything that karmalake keeps: lake, indexes, warehouse, caches, documents (`erasable`).

What it reaches is done, or the erasure is refused before anything is changed. What it cannot reach is listed at its end
(`erase_limits.py`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.errors import UsageError
from pipelines.lake.erasure import Erased, erase_users
from pipelines.lake.index import forget_indexes
from pipelines.lake.mentions import Mentions, count_mentions
from pipelines.lake.tables import open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.operate.erase_limits import beyond_reach
from pipelines.refresh import publish_warehouse, refresh_draft
from pipelines.reputation.by_user import by_user_path, forget_by_user
from pipelines.reputation.derive import is_kept, open_draft
from pipelines.serving.publish import Published
from pipelines.serving.read import published, read_reputation
from pipelines.serving.state import forget_state
from pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure did: rows of the lake, and the publication without the users; and what it left."""

    rows: Erased
    mentions: Mentions
    """Where other users' events name them, or users who were erased before."""
    kept: bool
    """Whether another process, such as `karmalake stream`, derives and publishes without them, by itself."""
    published: Published | None
    """None if nothing was published before, it was not asked for, or another process does it."""
    beyond: tuple[str, ...]
    """What the erasure does not reach, a sentence for each place."""


def erase(settings: Settings, user_ids: Sequence[str], tombstones: Collection[str] = ()) -> Erasure:
    """Erase users, and those whom tombstones of another lake name, their documents too.

    A kill at any step leaves a lake that adds up; erasing again finishes it. Raises, before anything is changed:
    UsageError without a lake or without the address of the store of documents, TransientError if that does not answer.
    Raises TransientError later when others kept committing.
    """
    open_lake(settings.lake_root)
    if not settings.serves:
        raise UsageError(
            "no store of documents is configured, so the users' documents could not be deleted, and nothing was "
            "erased: set redis.url (KARMALAKE_REDIS_URL) or cassandra.hosts as the publisher has it, or say "
            "--without-documents if there are none"
        )
    served = published(settings) is not None or any(read_reputation(user_id, settings) for user_id in user_ids)
    return _erase(settings, user_ids, tombstones, served=served)


def erase_without_documents(settings: Settings, user_ids: Sequence[str], tombstones: Collection[str] = ()) -> Erasure:
    """Erase users as `erase` does, but leave the store of documents alone: it is gone, or there never was one."""
    return _erase(settings, user_ids, tombstones, served=False)


def _erase(settings: Settings, user_ids: Sequence[str], digests: Collection[str], *, served: bool) -> Erasure:
    lake, path = open_lake(settings.lake_root), settings.warehouse_path
    tombstones = open_tombstones(lake, settings)
    rows = erase_users(lake, tombstones, user_ids, digests)
    forget_indexes(settings.index_dir)
    mentions = count_mentions(lake, tombstones)
    beyond = tuple(beyond_reach(settings, mentions))
    if is_kept(path):
        return Erasure(rows, mentions, kept=True, published=None, beyond=beyond)
    with open_draft(path) as draft:
        forget_by_user(by_user_path(path))
        if served or path.exists():
            refresh_draft(draft, lake, settings)
            draft.publish()
    if not served:
        forget_state(settings.published_dir)
    done = publish_warehouse(settings) if served else None
    return Erasure(rows, mentions, kept=False, published=done, beyond=beyond)
