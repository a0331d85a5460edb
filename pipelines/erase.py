"""The erasure of users from everything that karmalake keeps: lake, indexes, warehouse and cache (`erasable`).

What it cannot reach are the topic, where retention rules, and the databases of the services that wrote the events.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.lake.erasure import Erased, erase_users
from pipelines.lake.index import forget_indexes
from pipelines.lake.tables import open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.refresh import publish_warehouse, refresh_draft
from pipelines.reputation.by_user import by_user_path, forget_by_user
from pipelines.reputation.derive import is_kept, open_draft
from pipelines.serving.publish import Published
from pipelines.serving.read import published
from pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure did: rows of the lake, and the publication without the users."""

    rows: Erased
    warehouse: bool
    """Whether the warehouse was derived anew; if not, there is none, or `karmalake stream` does it by itself."""
    published: Published | None
    """None if nothing was published before, or `karmalake stream` does it."""


def erase(settings: Settings, user_ids: Sequence[str]) -> Erasure:
    """Erase users. A kill at any step leaves a lake that adds up; erasing again finishes it.

    Raises UsageError without a lake, TransientError when others kept committing or Redis does not answer.
    """
    lake = open_lake(settings.lake_root)
    rows = erase_users(lake, open_tombstones(lake, settings.contract), user_ids)
    forget_indexes(settings.index_dir)
    if is_kept(settings.warehouse_path) or not settings.warehouse_path.exists():
        return Erasure(rows, warehouse=False, published=None)
    with open_draft(settings.warehouse_path) as draft:
        forget_by_user(by_user_path(settings.warehouse_path))
        refresh_draft(draft, lake, settings)
        draft.publish()
    served = settings.serves and published(settings) is not None
    return Erasure(rows, warehouse=True, published=publish_warehouse(settings) if served else None)
