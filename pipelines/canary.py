"""The canary: a policy that is computed and published beside the one in force, before it counts.

`reputation/activation.py` records which policy that is. It has a warehouse in `canary/` of the data folder, and
documents under a prefix of its own, like a pinned policy, so nothing of the policy in force depends on it.
`follow_canary` brings both to what the lake says, and removes them after the canary has ended; `stream` calls it beside
its refreshes, and so does each command that begins or ends a canary, publishes or erases. So the next call completes
what a killed process left.
"""

from pathlib import Path
from shutil import rmtree

from pipelines.clock import MonotonicClock
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import Lake, open_lake
from pipelines.refresh import publish_draft, publish_everything, publish_warehouse, refresh_draft
from pipelines.reputation.activation import Activation, canary, had_canary
from pipelines.reputation.derive import open_draft
from pipelines.reputation.steps import epoch_us
from pipelines.serving.digest_cache import delete_digest_cache, open_digest_cache
from pipelines.serving.publication import Stamp
from pipelines.serving.publish import publish
from pipelines.serving.read import latest_as_of, may_have_documents
from pipelines.settings import Settings


def canary_settings(settings: Settings) -> Settings:
    """Return the configuration of the canary: the same lake, a data folder and a prefix of its own, and no feed."""
    root = settings.lake_root if settings.lake.on_s3 else str(Path(settings.lake_root).absolute())
    update = {
        "data_dir": settings.data_dir / "canary",
        "lake": settings.lake.model_copy(update={"uri": root}),
        "reputation": settings.reputation.model_copy(update={"pinned": True}),
        "feed": settings.feed.model_copy(update={"enabled": False}),
        "redis": settings.redis.model_copy(update={"prefix": f"{settings.redis.prefix}-canary"}),
        "cassandra": settings.cassandra.model_copy(update={"prefix": f"{settings.cassandra.prefix}-canary"}),
    }
    return settings.model_copy(update=update)


def follow_canary(settings: Settings, *, has_documents: bool = True, repair: bool = False) -> Activation | None:
    """Bring what is served of the canary to the newest commit of the lake and to now, and return the canary.

    Without a canary, what is left of the last one is removed. has_documents: whether there may be documents to write
    or delete, if a document store is configured. repair: write every document, like `publish_everything`. Does nothing
    for a pinned policy, since its lake is another configuration's. Safe to kill and to repeat. Raises like
    `refresh_warehouse` and `publish_warehouse`.
    """
    lake, beside = open_lake(settings.lake_root), canary_settings(settings)
    has_documents = has_documents and settings.has_document_store
    if settings.reputation.pinned or not (canary(lake) or _files(beside) or (has_documents and _remains(lake, beside))):
        return None
    # The lock of the draft orders the processes that follow the canary.
    with open_draft(beside.warehouse_path, beside.reputation) as draft:
        present = canary(lake)
        if present is None:
            if has_documents:
                _remove_documents(lake, beside)
            _remove_files(beside)
            return None
        refresh_draft(draft, lake, beside, present.policy)
        publish_draft(draft, beside)
        if has_documents:
            (publish_everything if repair else publish_warehouse)(beside)
        else:
            delete_digest_cache(beside.published_dir)
    return present


def _files(beside: Settings) -> list[Path]:
    """Return what is in the data folder of the canary, without the lock of its draft."""
    folder = beside.data_dir
    return [path for path in folder.iterdir() if path.suffix != ".lock"] if folder.exists() else []


def _remains(lake: Lake, beside: Settings) -> bool:
    """Return whether the store has documents of a canary, of which another machine had the files."""
    return had_canary(lake) and may_have_documents(beside)


def _remove_documents(lake: Lake, beside: Settings) -> None:
    """Publish that no user has a document, and no view a leaderboard."""
    store = beside.model_copy(update={"redis": beside.redis.model_copy(update={"leaderboards": ()})}).document_store
    clock = MonotonicClock()
    clock.advance_to(latest_as_of(beside))
    stamp = Stamp(take_snapshot(lake).version, epoch_us(clock.now()), "no canary")
    with open_digest_cache(beside.published_dir) as state:
        state.forget()
        publish(lambda _users: (none for none in ()), stamp, store, state)


def _remove_files(beside: Settings) -> None:
    """Remove the files of the canary, which name users. The lock stays: it is held."""
    for path in _files(beside):
        if path.is_dir():
            rmtree(path)
        else:
            path.unlink(missing_ok=True)
