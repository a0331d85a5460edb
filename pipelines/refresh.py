"""From the lake to the served documents: derive the warehouse, then publish its documents.

Every function is safe to kill and to repeat: the old warehouse stays until the new one is complete, and an interrupted
publication is repeated in full.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import duckdb
import polars as pl

from pipelines.clock import MonotonicClock
from pipelines.errors import NewerFormatError, PolicyError, TransientError, UsageError
from pipelines.feed import Record, Shown, open_feed
from pipelines.lake.commit_log import take_snapshot_without_feed
from pipelines.lake.tables import Lake, Snapshot, is_lake, open_lake
from pipelines.reputation.activation import activated, without_activations
from pipelines.reputation.derive import DerivationResult, Draft, Engine, derive_in_duckdb, is_draft_open, open_draft
from pipelines.reputation.documents import document_parts, require_ranked, shown_rows, shown_users
from pipelines.reputation.known_users import unknown_seeds
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.merged_users import merges_mark, merges_of
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.recent_events import recent_in_warehouse
from pipelines.reputation.steps import epoch_us
from pipelines.reputation.warehouse import Warehouse
from pipelines.reputation.warehouse_file import Info, attach, stored_info
from pipelines.reputation.warehouse_upload import upload_warehouse
from pipelines.serving.digest_cache import DigestCache, open_digest_cache
from pipelines.serving.publication import Stamp
from pipelines.serving.publish import PublishResult, publish
from pipelines.serving.read import published
from pipelines.settings import Settings

RefreshMethod = Callable[[Draft, Snapshot, Policy, datetime], DerivationResult]
"""`Draft.refresh` or `Draft.refresh_light_users`."""
_WAIT_INTERVALS = 10
"""How long `wait_for_warehouse` waits, in multiples of the interval at which `stream` publishes a warehouse."""
_POLL_SECONDS = 0.2
_PUBLISHED_LEADERBOARDS = "redis.leaderboards of the last publication (change it there, and publish, first)"


def refresh_warehouse(settings: Settings) -> DerivationResult:
    """Update the warehouse to the newest commit of the lake and to now, recomputing the affected users.

    Raises TransientError like `publish_draft`, UsageError when there is no lake or `karmalake stream` holds the
    warehouse's lock, PolicyError when the policy cannot be read; the old warehouse stays.
    """
    with open_draft(settings.warehouse_path, settings.reputation) as draft:
        derived = refresh_draft(draft, open_lake(settings.lake_root), settings)
        publish_draft(draft, settings)
    return derived


def rebuild_warehouse(
    settings: Settings, as_of: datetime | None = None, engine: Engine = derive_in_duckdb
) -> DerivationResult:
    """Rebuild the warehouse from the whole lake.

    as_of: None means now.
    Raises like `refresh_warehouse`, and like `engine`.
    """
    with open_draft(settings.warehouse_path, settings.reputation) as draft:
        lake = open_lake(settings.lake_root)
        snapshot, policy = snapshot_of(lake, settings), _policy(lake, settings)
        derived = draft.rebuild(snapshot, policy, as_of or datetime.now(UTC), engine)
        publish_draft(draft, settings)
    return derived


def publish_draft(draft: Draft, settings: Settings) -> None:
    """Publish a draft, then upload it if the lake is on S3 (`warehouse_upload.py`) and its policy is not pinned.

    Raises TransientError when S3 does not answer: the warehouse is published on this machine only.
    """
    draft.publish()
    if not settings.reputation.pinned:
        upload_warehouse(draft.path, settings.lake_root)


def refresh_draft(draft: Draft, lake: Lake, settings: Settings, policy: Policy | None = None) -> DerivationResult:
    """Update a draft to the newest commit of the lake and to now, without publishing it.

    policy: None means the one that `policy_in_force` returns.
    If the clock was set back since the warehouse was derived, by less than a day, as_of stays the same.
    """
    clock = MonotonicClock()
    clock.advance_to(draft.as_of())
    return draft.refresh(snapshot_of(lake, settings), policy or _policy(lake, settings), clock.now())


def derive_draft(
    draft: Draft, lake: Lake, settings: Settings, as_of: datetime, method: RefreshMethod
) -> DerivationResult:
    """Update a draft, whose documents are published next, to the newest commit of the lake and to a moment.

    Raises, before anything is derived, PolicyError when the policy cannot be read, and ConfigurationError when its
    version in force lacks what a leaderboard ranks.
    """
    snapshot, policy = snapshot_of(lake, settings), _policy(lake, settings)
    require_ranked(settings.document_store.leaderboards, policy.at(as_of))
    return method(draft, snapshot, policy, as_of)


def reflects_lake(info: Info, lake: Lake, settings: Settings) -> bool:
    """Return whether a warehouse with this `info` has every commit and merge of the lake, by the policy in force.

    Its moment may be an earlier one. False where the policy cannot be read: a refresh says why.
    """
    snapshot = snapshot_of(lake, settings)
    with suppress(PolicyError):
        return info.lake_version == snapshot.version and _is_derived_alike(info, snapshot, _policy(lake, settings))
    return False


def _is_current(info: Info, lake: Lake, settings: Settings) -> bool:
    """Return whether a warehouse reflects a version that the lake has, by the policy in force and with every merge."""
    snapshot = snapshot_of(lake, settings)
    return info.lake_version <= snapshot.version and _is_derived_alike(info, snapshot, _policy(lake, settings))


def _is_derived_alike(info: Info, snapshot: Snapshot, policy: Policy) -> bool:
    """Return whether a refresh would derive a warehouse with this `info` from the same merges, by the same policy."""
    return info.merges == merges_mark(merges_of(snapshot)) and info.policy == policy


def snapshot_of(lake: Lake, settings: Settings) -> Snapshot:
    """Return the newest snapshot of a lake without the feed; for a pinned policy, without the activations of others."""
    snapshot = take_snapshot_without_feed(lake)
    return without_activations(snapshot) if settings.reputation.pinned else snapshot


def policy_in_force(settings: Settings, known_at: datetime | None = None) -> Policy:
    """Return the policy that was activated last (before known_at, if given), or else the policy of the settings.

    A pinned policy of the settings is returned whatever was activated.

    Raises PolicyError when the latter cannot be read.
    """
    if not is_lake(settings.lake_root):
        return load_policy(settings.reputation.policy)
    return _policy(open_lake(settings.lake_root), settings, known_at)


def require_publishable(policy: Policy, settings: Settings) -> None:
    """Raise ConfigurationError unless a policy has what leaderboards rank, in its version in force and in later ones.

    Those are the leaderboards of the settings, and those published last: a publisher may have other settings. The
    latter are left out if the document store does not answer; without one, nothing is checked.
    """
    if not settings.has_document_store:
        return
    info, now = None, datetime.now(UTC)
    with suppress(TransientError):
        info = published(settings)
    starts = [rules.effective_from for rules in policy.versions if rules.effective_from]
    for moment in (now, *(start for start in starts if start > now)):
        require_ranked(settings.document_store.leaderboards, policy.at(moment))
        if info is not None:
            require_ranked(info.leaderboards, policy.at(moment), _PUBLISHED_LEADERBOARDS)


def unknown_seeds_in_force(settings: Settings) -> list[str]:
    """Return a sentence for each seed of the policy in force whom no event of the lake names; reads all events."""
    policy = policy_in_force(settings).at(datetime.now(UTC))
    if policy.rules.raters is None or not is_lake(settings.lake_root):
        return []
    with open_lake_views(snapshot_of(open_lake(settings.lake_root), settings)) as connection:
        return unknown_seeds(connection, policy)


def _policy(lake: Lake, settings: Settings, known_at: datetime | None = None) -> Policy:
    found = None if settings.reputation.pinned else activated(lake, known_at)
    return found or load_policy(settings.reputation.policy)


def wait_for_warehouse(settings: Settings, lake_version: int) -> Warehouse:
    """Return the warehouse at a version of the lake or a later one, by the policy in force and with every merge.

    Refreshed here, unless another process holds the warehouse's lock, such as `karmalake stream`: waits for that.
    Raises TransientError when that process does not reach the version in time, and like `refresh_warehouse`.
    """
    path, lake, deadline = (
        settings.warehouse_path,
        open_lake(settings.lake_root),
        time.monotonic() + _WAIT_INTERVALS * settings.reputation.derive_interval_seconds,
    )
    while True:
        if (warehouse := open_published(path)) is not None:
            if warehouse.info.lake_version >= lake_version and _is_current(warehouse.info, lake, settings):
                return warehouse
            warehouse.close()
        if not is_draft_open(path):
            refresh_warehouse(settings)
        elif time.monotonic() > deadline:
            raise TransientError(
                f"{path} is in use by another process and has not reached version {lake_version} by the policy "
                f"{_policy(lake, settings).name}: try again"
            )
        else:
            time.sleep(_POLL_SECONDS)


def open_published(path: Path) -> Warehouse | None:
    """Return the warehouse at `path`; None if there is none that this release can read: a refresh replaces it."""
    try:
        return Warehouse(path) if path.exists() else None
    except (UsageError, NewerFormatError):
        return None


def publish_warehouse(settings: Settings) -> PublishResult:
    """Publish the documents of the current warehouse that changed since the last publication.

    Raises FencedError when something newer has been published, TransientError when Redis does not answer.
    """
    with attach(settings.warehouse_path) as connection, open_digest_cache(settings.published_dir) as state:
        return _publish_all(connection, settings, state)


def publish_everything(settings: Settings) -> PublishResult:
    """Publish all documents of the current warehouse, and delete all other documents under the prefix.

    Repairs a store that other clients wrote to or that evicted documents. Raises like `publish_warehouse`.
    """
    with attach(settings.warehouse_path) as connection, open_digest_cache(settings.published_dir) as state:
        state.forget()
        return _publish_all(connection, settings, state)


def _publish_all(connection: duckdb.DuckDBPyConnection, settings: Settings, state: DigestCache) -> PublishResult:
    """Publish the documents of a warehouse, any of which may differ from those in `state`."""
    with open_feed(settings) as feed:
        info = stored_info(connection)
        shown = Shown(
            partial(shown_users, connection),
            partial(shown_rows, connection, "reputation"),
            partial(recent_in_warehouse, connection, info),
        )
        record = feed and partial(feed.record, shown)
        return publish_views(info, partial(document_parts, connection), settings, state, None, record)


def publish_views(
    info: Info,
    documents_of: Callable[[pl.Series | None, Sequence[str]], Generator[pl.DataFrame]],
    settings: Settings,
    state: DigestCache,
    changed: pl.Series | None,
    record: Record | None = None,
) -> PublishResult:
    """Publish the documents of a warehouse or draft, and record them in `state`.

    info: what the warehouse reflects.
    documents_of: like `document_parts`, of the warehouse.
    changed: the only user_ids (String) whose documents may differ from those in `state`; None: any may.
    record: records in the feed what changed, before the publication is complete.
    Raises like `publish_warehouse`.
    """
    stamp = Stamp(info.lake_version, epoch_us(info.as_of), f"{info.policy.name}@{info.policy_version}")
    ranked = settings.document_store.leaderboards
    record_changes = partial(record, changed, info) if record else lambda: None
    store = settings.document_store
    return publish(lambda users: documents_of(users, ranked), stamp, store, state, changed, record_changes)
