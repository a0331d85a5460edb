"""Jobs, schedules and sensors. All are off by default, since `karmalake stream` may already do the work."""

import dagster as dg
import polars as pl

from assets.checks import MINUTELY
from assets.history import history
from assets.lake import dead_letters, event_days, events
from assets.partitions import DAYS
from assets.resources import Karmalake
from assets.retention import retention
from assets.scores import anomalies, reputation, reputation_cache, trends, user_days
from assets.upkeep import audit, compacted_files
from pipelines.lake.commit_log import commits_after
from pipelines.lake.tables import COUNTS
from pipelines.serving.read import published

_EVERY_FIVE_MINUTES = 300
"""Dagster retains reported events indefinitely, so sensors report totals, and at most this often (seconds)."""

refresh = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.assets(events, reputation, reputation_cache).without_checks()
    | dg.AssetSelection.checks(*MINUTELY),
    description="From the bus to Redis: drain, derive, publish, and the checks that read no history.",
)
load = dg.define_asset_job(
    "load_history",
    selection=dg.AssetSelection.assets(history),
    description="Load files of history by day: launch it for a range of days. The settings locate the files.",
)
days = dg.define_asset_job("days", selection=dg.AssetSelection.assets(user_days, trends))
alarms = dg.define_asset_job("alarms", selection=dg.AssetSelection.assets(anomalies))
upkeep = dg.define_asset_job("upkeep", selection=dg.AssetSelection.assets(compacted_files))
proof = dg.define_asset_job("proof", selection=dg.AssetSelection.assets(audit))
verification = dg.define_asset_job(
    "verification",
    selection=dg.AssetSelection.assets(dead_letters).without_checks()
    | (dg.AssetSelection.all_asset_checks() - dg.AssetSelection.checks_for_assets(audit)),
    description="Count the dead letters, and run all checks, except the audit. They read the whole lake.",
)

JOBS = [refresh, load, days, alarms, upkeep, proof, verification, retention]


SCHEDULES = [
    dg.ScheduleDefinition(name=name, job=job, cron_schedule=cron, execution_timezone="UTC", description=description)
    for name, job, cron, description in (
        (
            "minutely_refresh",
            refresh,
            "* * * * *",
            "From the bus to Redis; use it if `karmalake stream` is not running.",
        ),
        ("nightly_retention", retention, "0 2 * * *", "Delete old runs."),
        ("nightly_alarms", alarms, "0 3 * * *", "Detect manipulation in the whole history."),
        ("nightly_upkeep", upkeep, "30 3 * * *", "Merge small files, and delete files that no commit references."),
        (
            "nightly_verification",
            verification,
            "0 4 * * *",
            "Count the dead letters, and run all checks, except the audit.",
        ),
        ("weekly_audit", proof, "0 5 * * 0", "Re-read every topic and account for every record."),
    )
]


@dg.sensor(asset_selection=dg.AssetSelection.assets(events), minimum_interval_seconds=_EVERY_FIVE_MINUTES)
def commits(context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.SensorResult:
    """Report commits made outside Dagster, by `karmalake stream` or `drain`, as one materialization.

    The cursor is the last reported lake version. Commits up to the last run of `events` are covered by its own
    materialization.
    """
    last = max(int(context.cursor or 0), _version_of_last_run(context.instance))
    rows = commits_after(karmalake.snapshot(), last)
    if not rows.height:
        return dg.SensorResult(cursor=str(last))
    version: int = rows["version"].to_list()[-1]
    totals: dict[str, int] = rows.select(pl.sum(*COUNTS)).row(0, named=True)
    metadata = {"lake_version": version, "commits": rows.height, **totals}
    return dg.SensorResult(asset_events=[dg.AssetMaterialization(events.key, metadata=metadata)], cursor=str(version))


@dg.sensor(asset_selection=dg.AssetSelection.assets(event_days.key), minimum_interval_seconds=_EVERY_FIVE_MINUTES)
def updated_days(context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.SensorResult:
    """Report the days to which commits have added events since the last tick, each once.

    The cursor is the last lake version processed; without one, all days are reported, which causes a backfill.
    """
    last = int(context.cursor or 0)
    rows = commits_after(karmalake.snapshot(), last)
    if not rows.height:
        return dg.SensorResult(cursor=str(last))
    touched = rows.explode("days").group_by("days").agg(pl.col("version").max()).drop_nulls().sort("days")
    known = set(DAYS.get_partition_keys())
    reported = [
        dg.AssetMaterialization(event_days.key, partition=str(day), metadata={"lake_version": version})
        for day, version in touched.rows()
        if str(day) in known
    ]
    return dg.SensorResult(asset_events=reported, cursor=str(rows["version"].to_list()[-1]))


@dg.sensor(asset_selection=dg.AssetSelection.assets(reputation_cache), minimum_interval_seconds=_EVERY_FIVE_MINUTES)
def publications(
    context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]
) -> dg.SensorResult | dg.SkipReason:
    """Report the latest publication made outside Dagster as a materialization; earlier ones are skipped."""
    info = published(karmalake.settings)
    if info is None:
        return dg.SkipReason("nothing is published yet")
    reported = context.instance.get_latest_materialization_event(reputation_cache.key)
    if reported is not None and reported.timestamp >= info.published_at.timestamp():
        return dg.SkipReason("the latest publication is already reported")
    metadata = {
        "dagster/row_count": info.documents,
        "lake_version": info.stamp.lake_version,
        "published_at": info.published_at.isoformat(),
        "staleness_seconds": info.staleness_seconds,
    }
    return dg.SensorResult(asset_events=[dg.AssetMaterialization(reputation_cache.key, metadata=metadata)])


late_days = dg.AutomationConditionSensorDefinition(
    "late_days",
    target=dg.AssetSelection.assets(user_days, trends),
    minimum_interval_seconds=60,
    description="Recompute days to which events were added: once an hour, all of them in one backfill.",
)

SENSORS = [commits, updated_days, publications, late_days]


def _version_of_last_run(instance: dg.DagsterInstance) -> int:
    event = instance.get_latest_materialization_event(events.key)
    if event is None or event.asset_materialization is None or not event.run_id:
        return 0
    version = event.asset_materialization.metadata["lake_version"].value
    return version if isinstance(version, int) else 0
