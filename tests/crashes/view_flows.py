"""Kills during a full rebuild and an incremental refresh of the warehouse."""

from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from pipelines.drain import drain, open_ingest
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.refresh import policy_in_force, rebuild_warehouse
from pipelines.reputation import database_file, draft_file
from pipelines.reputation import derive as derive_module
from pipelines.reputation.derive import open_draft
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from tests.crashes.flows import NOON, Flow, killed
from tests.crashes.kills import Moment
from tests.draining import drain_all
from tests.services.waiting import PATIENCE_SECONDS, wait_for

LATER = NOON + timedelta(days=1)
_LAST = NOON + timedelta(days=8)
_TABLES = ("reputation", "user_days", "user_reasons", "status_periods", "trends_daily", "trends_scores")
_BOTH = {
    "pipelines.reputation.derive:read_commits": 1,
    "pipelines.reputation.derive:define_steps": 1,
    "pipelines.reputation.derive:materialize_fact": 1,
    "pipelines.reputation.steps:statement": 1,
    "pipelines.reputation.draft_file:create_lake_views": 1,
    "pipelines.reputation.draft_file:publish_copy": 1,
    "pipelines.reputation.database_file:copyfile": 1,
    "pipelines.reputation.database_file:replace_durably": 1,
    "pipelines.reputation.draft_file:remove_database": 2,
    "pipelines.reputation.draft_file:remove_older_bases": 1,
    "pipelines.reputation.draft_file:remove_other_bases": 2,
}
_REFRESHING = {
    "pipelines.reputation.derive:Histories.sync": 1,
    "pipelines.reputation.histories:new_segment": 1,
    "pipelines.reputation.histories:store_segment": 1,
    "pipelines.reputation.histories:make_segment_durable": 1,
    "pipelines.reputation.histories:replace_durably": 1,
    "pipelines.reputation.derive:find_affected_users": 1,
    "pipelines.reputation.derive:load_affected_events": 1,
    "pipelines.reputation.derive:replace_rows": 1,
    "pipelines.reputation.refresh_steps:differing_rows": 1,
    "pipelines.reputation.user_rows:store_chunks": 1,
    "pipelines.reputation.user_rows:make_durable": 1,
    "pipelines.reputation.draft_tables:DraftTables.replace": 1,
    "pipelines.reputation.draft_tables:DraftTables.begin_writing": 1,
    "pipelines.reputation.unwritten:Unwritten.write": 1,
    "pipelines.reputation.unwritten:write_info": 1,
    "pipelines.reputation.derive:Draft._describe": 1,
    "pipelines.reputation.unwritten:update_trends": 1,
    "pipelines.reputation.draft_file:copyfile": 1,
}


def drain_two(settings: Settings) -> None:
    """Commit two of the three batches."""
    with open_ingest(settings) as ingest:
        drain(ingest, lambda _: None, 2)


def refresh(settings: Settings, as_of: datetime) -> None:
    """Refresh as `karmalake refresh` does, but as of a fixed time."""
    with open_draft(settings.warehouse_path) as draft:
        draft.refresh(take_snapshot(open_lake(settings.lake_root)), policy_in_force(settings), as_of)
        draft.publish()


def refresh_and_fold(settings: Settings) -> None:
    """Refresh, and publish with a new base, whatever the number of changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_file, "_FOLD_THRESHOLD", 0.0)
        refresh(settings, LATER)


def refresh_beside_a_copy(settings: Settings) -> None:
    """Publish and refresh at once, as `karmalake stream` does: the copy begins when the refresh writes."""
    copy, replace = database_file.copyfile, derive_module.replace_rows
    publishing, writing = Event(), Event()

    def copy_late(file: Path, target: Path) -> None:
        assert writing.wait(PATIENCE_SECONDS)
        copy(file, target)

    def replace_rows(*arguments: Any) -> Any:
        if publishing.is_set():
            writing.set()
        return replace(*arguments)

    snapshot, policy = take_snapshot(open_lake(settings.lake_root)), policy_in_force(settings)
    with pytest.MonkeyPatch.context() as patch, open_draft(settings.warehouse_path) as draft:
        patch.setattr(database_file, "copyfile", copy_late)
        patch.setattr(derive_module, "replace_rows", replace_rows)
        draft.refresh(snapshot, policy, LATER)
        draft.start_publication()
        publishing.set()
        draft.refresh(snapshot, policy, _LAST)
        draft.publish()


def refresh_beside_a_fold(settings: Settings) -> None:
    """Publish while a thread writes a new base, and then with that base, as `karmalake stream` does."""
    snapshot, policy = take_snapshot(open_lake(settings.lake_root)), policy_in_force(settings)
    with pytest.MonkeyPatch.context() as patch, open_draft(settings.warehouse_path) as draft:
        patch.setattr(draft_file, "_FOLD_THRESHOLD", 0.0)
        draft.refresh(snapshot, policy, LATER)
        draft.start_publication().result(PATIENCE_SECONDS)
        patch.setattr(draft_file, "_FOLD_THRESHOLD", 1.0)
        draft.refresh(snapshot, policy, _LAST)
        draft.start_publication().result(PATIENCE_SECONDS)
        if draft._file._folding is not None:  # none after a rebuild
            wait_for("the new base", draft._file._folding.is_done)
        draft.publish()


def _prepare(settings: Settings) -> None:
    drain_two(settings)
    refresh(settings, NOON)
    drain_all(settings)


def _rebuild(settings: Settings) -> None:
    rebuild_warehouse(settings, LATER)


def _refresh(settings: Settings) -> None:
    refresh(settings, LATER)


def _warehouse(settings: Settings) -> dict[str, list[tuple[object, ...]]]:
    with Warehouse(settings.warehouse_path) as warehouse:
        return {table: sorted(warehouse.sql(f"FROM {table}").rows(), key=repr) for table in _TABLES}


FLOWS = {
    "rebuild": Flow(
        _rebuild,
        _BOTH | {"pipelines.reputation.derive:create_lake_views": 1},
        _prepare,
        sound=_warehouse,
        seen=_warehouse,
    ),
    "refresh": Flow(_refresh, _BOTH | _REFRESHING, _prepare, sound=_warehouse, seen=_warehouse),
    "refresh and fold": Flow(
        refresh_and_fold,
        {
            "pipelines.reputation.draft_file:write_base": 1,
            "pipelines.reputation.base:make_durable": 1,
            "pipelines.reputation.draft_file:create_changes": 1,
            "pipelines.reputation.draft_file:create_lake_views": 1,
            "pipelines.reputation.database_file:replace_durably": 1,
            "pipelines.reputation.draft_file:remove_older_bases": 1,
            "pipelines.reputation.draft_file:remove_other_bases": 2,
        },
        _prepare,
        sound=_warehouse,
        seen=_warehouse,
    ),
    "refresh beside a fold": Flow(
        refresh_beside_a_fold,
        {
            "pipelines.reputation.draft_file:Fold": 1,
            "pipelines.reputation.fold:write_base": 1,
            "pipelines.reputation.base:make_durable": 1,
            "pipelines.reputation.fold:write_rows_beside": 1,
            "pipelines.reputation.user_rows:make_durable": 8,
            "pipelines.reputation.draft_tables:DraftTables.adopt": 1,
            "pipelines.reputation.draft_tables:replace_changes": 1,
            "pipelines.reputation.draft_tables:DraftTables.begin_writing": 3,
            "pipelines.reputation.database_file:copyfile": 3,
            "pipelines.reputation.database_file:replace_durably": 3,
            "pipelines.reputation.draft_file:remove_older_bases": 3,
        },
        _prepare,
        sound=_warehouse,
        seen=_warehouse,
    ),
    "refresh beside a copy": Flow(
        refresh_beside_a_copy,
        {
            "pipelines.reputation.derive:replace_rows": 2,
            "pipelines.reputation.derive:Draft._describe": 2,
            "pipelines.reputation.draft_file:publish_copy": 2,
            "pipelines.reputation.database_file:copyfile": 2,
            "pipelines.reputation.database_file:replace_durably": 2,
            "pipelines.reputation.database_file:remove_copy": 2,
            "pipelines.reputation.unwritten:update_trends": 2,
        },
        _prepare,
        sound=_warehouse,
        seen=_warehouse,
    ),
    "recovery from a refresh that was not published": Flow(
        _refresh,
        {
            "pipelines.reputation.draft_file:remove_database": 2,
            "pipelines.reputation.derive:Histories.sync": 1,
            "pipelines.reputation.derive:replace_rows": 1,
            "pipelines.reputation.draft_file:remove_copy": 2,
            "pipelines.reputation.draft_file:copyfile": 1,
            "pipelines.reputation.database_file:copyfile": 1,
            "pipelines.reputation.database_file:replace_durably": 1,
        },
        killed(Moment("pipelines.reputation.database_file:replace_durably", "before", 1), _refresh, _prepare),
        sound=_warehouse,
        seen=_warehouse,
    ),
}
