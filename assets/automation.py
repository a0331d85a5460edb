"""When things happen. Everything is off until somebody turns it on: `karmalake stream` may be doing it already."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
from pyarrow.compute import field
from pyarrow.dataset import dataset

from assets.history import history
from assets.lake import compacted_files, events
from assets.resources import Karmalake
from assets.scores import anomalies, reputation_cache, user_days
from pipelines.lake.tables import COUNTS
from pipelines.serving.read import published

_MOST_EVENTS_A_TICK = 200

refresh = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(history, user_days, anomalies, compacted_files),
    description="From the bus to Redis: drain, derive, publish, check.",
)
days = dg.define_asset_job("days", selection=dg.AssetSelection.assets(user_days))
alarms = dg.define_asset_job("alarms", selection=dg.AssetSelection.assets(anomalies))
upkeep = dg.define_asset_job("upkeep", selection=dg.AssetSelection.assets(compacted_files))
verification = dg.define_asset_job("verification", selection=dg.AssetSelection.all_asset_checks())

JOBS = [refresh, days, alarms, upkeep, verification]


@dg.schedule(job=days, cron_schedule="5 * * * *", execution_timezone="UTC")
def hourly_day(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Materialize today, every hour."""
    today = (context.scheduled_execution_time or datetime.now(UTC)).astimezone(UTC)
    return dg.RunRequest(partition_key=today.strftime("%Y-%m-%d"))


SCHEDULES = [
    dg.ScheduleDefinition(name="minutely_refresh", job=refresh, cron_schedule="* * * * *", execution_timezone="UTC"),
    dg.ScheduleDefinition(name="nightly_alarms", job=alarms, cron_schedule="0 3 * * *", execution_timezone="UTC"),
    dg.ScheduleDefinition(name="nightly_upkeep", job=upkeep, cron_schedule="30 3 * * *", execution_timezone="UTC"),
    dg.ScheduleDefinition(
        name="nightly_verification", job=verification, cron_schedule="0 4 * * *", execution_timezone="UTC"
    ),
    hourly_day,
]


@dg.sensor(asset_selection=dg.AssetSelection.assets(events), minimum_interval_seconds=15)
def commits(context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.SensorResult:
    """Report the commits that were made outside of Dagster, by `karmalake stream` or `drain`, as materializations.

    The cursor is the last version reported: a hint. What a run of `events` has passed, its own materialization covers.
    """
    last = max(int(context.cursor or 0), _version_of_last_run(context.instance))
    files = karmalake.snapshot().files["commits"]
    if not files:
        return dg.SensorResult(cursor=str(last))
    rows = dataset(list(files)).to_table(["version", "source", "batch_id", *COUNTS], filter=field("version") > last)
    new: list[dict[str, Any]] = rows.sort_by("version").slice(0, _MOST_EVENTS_A_TICK).to_pylist()
    reported = [
        dg.AssetMaterialization(events.key, metadata={"lake_version": row.pop("version"), **row}) for row in new
    ]
    upto = reported[-1].metadata["lake_version"].value if reported else last
    return dg.SensorResult(asset_events=reported, cursor=str(upto))


@dg.sensor(asset_selection=dg.AssetSelection.assets(reputation_cache), minimum_interval_seconds=60)
def publications(
    context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]
) -> dg.SensorResult | dg.SkipReason:
    """Report the newest publication that was made outside of Dagster as a materialization; those between are passed."""
    info = published(karmalake.settings)
    if info is None:
        return dg.SkipReason("nothing is published yet")
    reported = context.instance.get_latest_materialization_event(reputation_cache.key)
    if reported is not None and reported.timestamp >= info.published_at.timestamp():
        return dg.SkipReason("the newest publication is reported")
    metadata = {
        "dagster/row_count": info.documents,
        "lake_version": info.stamp.lake_version,
        "published_at": info.published_at.isoformat(),
        "staleness_seconds": info.staleness_seconds,
    }
    return dg.SensorResult(asset_events=[dg.AssetMaterialization(reputation_cache.key, metadata=metadata)])


SENSORS = [commits, publications]


def _version_of_last_run(instance: dg.DagsterInstance) -> int:
    event = instance.get_latest_materialization_event(events.key)
    if event is None or event.asset_materialization is None or not event.run_id:
        return 0
    version = event.asset_materialization.metadata["lake_version"].value
    return version if isinstance(version, int) else 0
