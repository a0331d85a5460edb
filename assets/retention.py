"""How long Dagster remembers its runs. Its own retention covers the ticks of schedules and sensors only.

A run that an asset, or a day of one, was materialized by last stays, however old: from its events Dagster knows that
the day is there. The others are a record of what happened, and a drain each minute makes half a million of them a year.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import dagster as dg

_AT_A_TIME = 500


class Remembered(dg.Config):
    """How many days runs are kept, counted from their end."""

    succeeded_days: int = 2
    other_days: int = 30
    """Those that failed or were cancelled: somebody may still have to look at them."""


@dg.op
def forget_runs(context: dg.OpExecutionContext, config: Remembered) -> None:
    """Delete the runs that are over for longer than they are remembered, with their events and logs."""
    others = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    statuses = {(dg.DagsterRunStatus.SUCCESS,): config.succeeded_days, tuple(others): config.other_days}
    last = _last_materialized_by(context.instance)
    old = [run_id for ended, days in statuses.items() for run_id in _older(context.instance, list(ended), days)]
    forgotten = [run_id for run_id in old if run_id not in last]
    for run_id in forgotten:
        _forget(context.instance, run_id)
    kept = len(old) - len(forgotten)
    context.log.info("%d runs forgotten; %d as old are what assets were materialized by last", len(forgotten), kept)


@dg.job(description="Delete old runs, so that run storage does not grow without bound.")
def retention() -> None:
    """Forget old runs."""
    forget_runs()


def _older(instance: dg.DagsterInstance, statuses: list[dg.DagsterRunStatus], days: int) -> list[str]:
    before = datetime.now(UTC) - timedelta(days=days)
    records = instance.get_run_records(dg.RunsFilter(statuses=statuses, updated_before=before))
    return [record.dagster_run.run_id for record in records]


def _last_materialized_by(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs whose events say that an asset, or a day of one, is materialized."""
    return {run_id for key in instance.get_asset_keys() for run_id in _runs_of(instance, key)}


def _runs_of(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[str]:
    event = instance.get_latest_materialization_event(key)
    if event is not None:
        yield event.run_id
    days = instance.event_log_storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    latest = iter(days.values())
    while storage_ids := list(islice(latest, _AT_A_TIME)):
        found = instance.fetch_materializations(dg.AssetRecordsFilter(key, storage_ids=storage_ids), limit=_AT_A_TIME)
        yield from (record.run_id for record in found.records)


def _forget(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run; on SQLite each has a file of its own, which Dagster leaves, emptied."""
    instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    file_of = getattr(instance.event_log_storage, "path_for_shard", None)
    if file_of is not None:
        Path(file_of(run_id)).unlink(missing_ok=True)
