"""Jobs and schedules. All schedules are off by default, since `karmalake stream` may already do the work."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import dagster as dg

from assets.checks import CHECKS, MINUTELY
from assets.history import history
from assets.lake import dead_letters, events
from assets.resources import Karmalake
from assets.retention import retention
from assets.scores import anomalies, reputation, reputation_cache, trends, user_days
from assets.upkeep import audit, compacted_files

_SCHEDULES = {
    "minutely_refresh": ("refresh", "* * * * *"),
    "nightly_retention": ("retention", "0 2 * * *"),
    "nightly_alarms": ("alarms", "0 3 * * *"),
    "nightly_upkeep": ("upkeep", "30 3 * * *"),
    "nightly_verification": ("verification", "0 4 * * *"),
    "weekly_audit": ("proof", "0 5 * * 0"),
}
"""The job and the time (UTC) of each schedule."""
_GRAPH_TAG = "karmalake/graph"
_FORGOTTEN = timedelta(days=1)
"""After so long, a run that has not ended no longer counts: without `run_monitoring`, a killed one never ends."""
_NOT_ENDED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""Not NOT_STARTED: a scheduler that was killed before it started its run asks again, and then starts it."""


def jobs(karmalake: Karmalake) -> list[Any]:
    """Return the jobs over the assets of a graph."""
    select = karmalake.select
    return [
        dg.define_asset_job(
            "refresh",
            selection=select(events, reputation, reputation_cache).without_checks()
            | karmalake.select_checks(*MINUTELY),
            description="From the bus to Redis: drain, derive, publish, and the checks that read no history. Run it by "
            "its schedule if `karmalake stream` is not running.",
        ),
        dg.define_asset_job(
            "load_history",
            selection=select(history),
            description="Load files of history by day: launch it for a range of days. The settings locate the files.",
        ),
        dg.define_asset_job("days", selection=select(user_days, trends), description="Report days of activity."),
        dg.define_asset_job(
            "alarms", selection=select(anomalies), description="Detect manipulation in the whole history."
        ),
        dg.define_asset_job(
            "upkeep",
            selection=select(compacted_files),
            description="Merge small files, and delete files that no commit references.",
        ),
        dg.define_asset_job(
            "proof", selection=select(audit), description="Re-read every topic and account for every record."
        ),
        dg.define_asset_job(
            "verification",
            selection=select(dead_letters).without_checks() | karmalake.select_checks(*CHECKS),
            description="Count the dead letters, and run all checks, except the audit. They read the whole lake.",
        ),
        retention,
    ]


def schedules(karmalake: Karmalake, jobs: list[Any]) -> list[dg.ScheduleDefinition]:
    """Return the schedules of the jobs of a graph."""
    graph = karmalake.key(events).to_user_string()
    by_name = {job.name: job for job in jobs}
    return [
        dg.ScheduleDefinition(
            name=name,
            job=by_name[job],
            cron_schedule=cron,
            execution_timezone="UTC",
            execution_fn=partial(_one_at_a_time, graph, name),
            description=by_name[job].description,
        )
        for name, (job, cron) in _SCHEDULES.items()
    ]


def _one_at_a_time(graph: str, schedule: str, context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run unless the last one has not ended: a rebuild of an hour would leave sixty runs that wait for it.

    The graph is part of it: schedules of other code locations may have the same name.
    """
    tags = {_GRAPH_TAG: graph}
    unended = dg.RunsFilter(
        tags=tags | {"dagster/schedule_name": schedule},
        statuses=_NOT_ENDED,
        created_after=datetime.now(UTC) - _FORGOTTEN,
    )
    runs = context.instance.get_run_records(unended, limit=1)
    if not runs:
        return dg.RunRequest(tags=tags)
    return dg.SkipReason(f"run {runs[0].dagster_run.run_id} of this schedule has not ended: the next one follows it")
