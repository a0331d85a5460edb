"""Retention of Dagster runs. Dagster's own retention covers only the ticks of schedules and sensors.

The latest run that materialized an asset, or a day of one, is retained at any age: Dagster knows from its events that
the day is materialized. Other runs are only history, and a drain every minute adds half a million of them a year.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import dagster as dg

from assets.failures import failure
from pipelines.errors import UsageError

_PAGE_SIZE = 500
_MAX_DAYS = 36_500


class RetentionConfig(dg.Config):
    """How long to retain runs, in days from their end."""

    succeeded_days: int = 2
    other_days: int = 30
    """Runs that failed or were canceled: an operator may still have to examine them."""


@dg.op
def delete_old_runs(context: dg.OpExecutionContext, config: RetentionConfig) -> None:
    """Delete runs past their retention, with their events and logs."""
    if not all(0 <= days <= _MAX_DAYS for days in (config.succeeded_days, config.other_days)):
        raise failure(UsageError(f"runs are retained for 0 to {_MAX_DAYS} days: {config}"))
    others = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    statuses = {(dg.DagsterRunStatus.SUCCESS,): config.succeeded_days, tuple(others): config.other_days}
    last = _last_materialized_by(context.instance)
    old = [
        run_id for ended, days in statuses.items() for run_id in _finished_before(context.instance, list(ended), days)
    ]
    deleted = [run_id for run_id in old if run_id not in last]
    for run_id in deleted:
        _delete_run(context.instance, run_id)
    kept = len(old) - len(deleted)
    context.log.info(
        "deleted %d runs; retained %d old ones that are the latest materialization of an asset", len(deleted), kept
    )


@dg.job(description="Delete old runs, so that run storage does not grow without bound.")
def retention() -> None:
    """Delete old runs."""
    delete_old_runs()


def _finished_before(instance: dg.DagsterInstance, statuses: list[dg.DagsterRunStatus], days: int) -> list[str]:
    before = datetime.now(UTC) - timedelta(days=days)
    records = instance.get_run_records(dg.RunsFilter(statuses=statuses, updated_before=before))
    return [record.dagster_run.run_id for record in records]


def _last_materialized_by(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs that last materialized an asset, or a day of one."""
    return {run_id for key in instance.get_asset_keys() for run_id in _runs_of(instance, key)}


def _runs_of(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[str]:
    event = instance.get_latest_materialization_event(key)
    if event is not None:
        yield event.run_id
    days = instance.event_log_storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    latest = iter(days.values())
    while storage_ids := list(islice(latest, _PAGE_SIZE)):
        found = instance.fetch_materializations(dg.AssetRecordsFilter(key, storage_ids=storage_ids), limit=_PAGE_SIZE)
        yield from (record.run_id for record in found.records)


def _delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run, and on SQLite also its event file, which Dagster leaves behind empty."""
    instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    file_of = getattr(instance.event_log_storage, "path_for_shard", None)
    if file_of is not None:
        Path(file_of(run_id)).unlink(missing_ok=True)
