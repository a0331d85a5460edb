"""From the lake to what people see: derive the warehouse, then publish its documents.

All of it is safe to kill and to repeat: the old warehouse stays until the new one is whole, and a publication that was
cut off is done again in full.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import duckdb
import polars as pl

from pipelines.clock import Moments
from pipelines.errors import TransientError
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import Lake, Snapshot, is_lake, open_lake
from pipelines.reputation.activation import activated
from pipelines.reputation.derive import Derived, Draft, Engine, in_duckdb, is_kept, open_draft
from pipelines.reputation.documents import documents
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.stages import epoch_us
from pipelines.reputation.warehouse import Warehouse, attach, stored_info
from pipelines.serving.publication import Stamp
from pipelines.serving.publish import Published, publish
from pipelines.serving.state import State, open_state
from pipelines.settings import Settings

Refreshing = Callable[[Draft, Snapshot, Policy, datetime], Derived]
"""A way of a draft to come up to date: `Draft.refresh` or `Draft.refresh_others`."""
_PATIENCE = 10
"""Of the intervals in which `stream` derives."""
_POLL_SECONDS = 0.2


def refresh_warehouse(settings: Settings) -> Derived:
    """Bring the warehouse up to the newest whole state of the lake and to now, by what was touched since.

    Raises UsageError when there is no lake or `karmalake stream` keeps the warehouse, PolicyError when the policy
    cannot be read; the old warehouse stays.
    """
    with open_draft(settings.warehouse_path) as draft:
        derived = refresh_draft(draft, open_lake(settings.lake_root), settings)
        draft.publish()
    return derived


def rebuild_warehouse(settings: Settings, as_of: datetime | None = None, engine: Engine = in_duckdb) -> Derived:
    """Compute the warehouse from nothing, as of now unless told otherwise.

    Raises like `refresh_warehouse`, and like `engine`.
    """
    with open_draft(settings.warehouse_path) as draft:
        lake = open_lake(settings.lake_root)
        derived = draft.rebuild(take_snapshot(lake), _policy(lake, settings), as_of or datetime.now(UTC), engine)
        draft.publish()
    return derived


def refresh_draft(draft: Draft, lake: Lake, settings: Settings) -> Derived:
    """Bring a draft up to the newest whole state of the lake and to now; publish nothing.

    Where the clock was set back since the warehouse was derived, by less than a day, it is as of the same moment again.
    """
    moments = Moments()
    moments.not_before(draft.as_of())
    return derive_draft(draft, lake, settings, moments.next(), Draft.refresh)


def derive_draft(draft: Draft, lake: Lake, settings: Settings, as_of: datetime, how: Refreshing) -> Derived:
    """Bring a draft up to the newest whole state of the lake and to a moment, in one of a draft's ways."""
    return how(draft, take_snapshot(lake), _policy(lake, settings), as_of)


def policy_in_force(settings: Settings, known_at: datetime | None = None) -> Policy:
    """Return the policy that was activated last (before known_at, if given), or else the one that the settings name.

    Raises PolicyError when that one cannot be read.
    """
    if not is_lake(settings.lake_root):
        return load_policy(settings.reputation.policy)
    return _policy(open_lake(settings.lake_root), settings, known_at)


def _policy(lake: Lake, settings: Settings, known_at: datetime | None = None) -> Policy:
    return activated(lake, known_at) or load_policy(settings.reputation.policy)


def warehouse_of(settings: Settings, lake_version: int) -> Warehouse:
    """Return the warehouse as of a version of the lake or a later one, derived if nobody else is about to.

    What keeps the warehouse, such as `karmalake stream`, is waited for. Raises TransientError when that does not come
    to this version in time, and like `refresh_warehouse`.
    """
    path, deadline = settings.warehouse_path, time.monotonic() + _PATIENCE * settings.reputation.derive_interval_seconds
    while True:
        warehouse = Warehouse(path) if path.exists() else None
        if warehouse is not None and warehouse.info.lake_version >= lake_version:
            return warehouse
        if not is_kept(path):
            refresh_warehouse(settings)
        elif time.monotonic() > deadline:
            raise TransientError(f"{path} is kept by another process and has not come to version {lake_version} yet")
        else:
            time.sleep(_POLL_SECONDS)


def publish_warehouse(settings: Settings) -> Published:
    """Publish the documents of the current warehouse: those that changed since the last publication.

    Raises FencedError when something newer is published already, TransientError when Redis does not answer.
    """
    with attach(settings.warehouse_path) as connection, open_state(settings.published_dir) as state:
        return publish_views(connection, settings, state, None)


def publish_everything(settings: Settings) -> Published:
    """Publish all documents of the current warehouse, and delete whatever else is served under the prefix.

    For a store that something else wrote to or evicted from. Raises like `publish_warehouse`.
    """
    with attach(settings.warehouse_path) as connection, open_state(settings.published_dir) as state:
        state.forget()
        return publish_views(connection, settings, state, None)


def publish_views(
    connection: duckdb.DuckDBPyConnection, settings: Settings, state: State, changed: pl.Series | None
) -> Published:
    """Publish the documents of a warehouse or draft, and let `state` remember it.

    `changed` names who alone may have another document than `state` remembers. Raises like `publish_warehouse`.
    """
    info = stored_info(connection)
    stamp = Stamp(info.lake_version, epoch_us(info.as_of), f"{info.policy.name}@{info.policy_version}")

    def made(users: pl.Series | None) -> pl.DataFrame:
        return documents(connection, users, settings.documents.leaderboards)

    return publish(made, stamp, settings.documents, state, changed)
