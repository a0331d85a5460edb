"""The warehouse and what is read from it.

One derivation makes every table of the warehouse from one snapshot of the lake. So `reputation` is what derives, and
`user_days` and `trends` say of the same warehouse what is in it; a day of them is materialized when the warehouse holds
that day as the newest lake has it. A backfill of many days derives once. A day that events were added to, however late,
is asked for again by its condition: once an hour, all such days together.
"""

from datetime import date, timedelta
from typing import Any

import dagster as dg

from assets.failures import RETRIES, actionable
from assets.lake import POOL, event_days, events
from assets.partitions import DAYS
from assets.resources import Karmalake
from assets.upkeep import NIGHTLY
from pipelines.boundary.text import as_code
from pipelines.lake.tables import open_lake
from pipelines.refresh import publish_warehouse, refresh_warehouse, warehouse_of
from pipelines.reputation.activation import activate
from pipelines.reputation.by_day import by_day
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse

_DAYS = """
SELECT
    day::VARCHAR AS day,
    count(*) AS "dagster/row_count",
    count(DISTINCT user_id) AS active_users,
    sum(events)::BIGINT AS events,
    sum(counted)::BIGINT AS counted,
    sum(points)::DOUBLE AS points,
    sum(rating_count)::BIGINT AS ratings
FROM user_days
WHERE day BETWEEN ? AND ?
GROUP BY day
"""
_ANOMALIES = ("review_bombs", "rater_bursts", "reciprocal_rings", "drift")
_EVIDENCE = ["day", "expected", "observed", "score"]
"""Without the user: an erasure does not reach Dagster's storage."""
_NEWEST = 20
_BY_ACTION = ["day", "action_type", "events", "counted", "active_users", "points", "rating_average"]
_FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1), warn_window=timedelta(minutes=15))
"""By the last publication, whoever made it: the sensor `publications` reports those of `karmalake stream`."""
_COLUMNS = "SELECT column_name, column_type FROM (DESCRIBE {table})"


_TOUCHED_HOURLY = (
    dg.AutomationCondition.any_deps_updated().since_last_handled()
    & dg.AutomationCondition.cron_tick_passed("5 * * * *")
    & ~dg.AutomationCondition.in_progress()
).with_label("a commit touched the day; hourly")
"""Of any age, unlike `eager` and `on_cron`, which look at the latest day only. At most one backfill an hour, with a run
for each unbroken stretch of days, two at a time: no storms."""


class ByPolicy(dg.Config):
    """By which policy scores are from now on."""

    policy: str | None = None
    """A policy file or a shipped policy, put in force as `karmalake policy activate` does; none: the one in force."""


@dg.asset(group_name="scores", kinds={"duckdb"}, deps=[events], pool=POOL, retry_policy=RETRIES)
@actionable
def reputation(config: ByPolicy, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Everybody's status and scores by the policy in force, as of now: computes who was touched since the last time.

    With another policy everything is computed anew; the run's log says which steps are done.
    """
    settings = karmalake.settings
    if config.policy is not None:
        activate(open_lake(settings.lake_root), load_policy(config.policy))
    derived = refresh_warehouse(settings)
    with Warehouse(settings.warehouse_path) as warehouse:
        columns, policy = _columns(warehouse, "reputation"), warehouse.info
    metadata = {
        "dagster/row_count": derived.users,
        "lake_version": derived.lake_version,
        "as_of": derived.as_of.isoformat(),
        "policy": f"{policy.policy.name}, version {policy.policy_version}",
        "events": derived.events,
        "counted": derived.counted,
        "touched_users": derived.touched,
        "rebuilt": derived.rebuilt or "no",
        "seconds": derived.seconds,
    }
    return dg.MaterializeResult(metadata={**metadata, **columns})


@dg.asset(
    group_name="scores",
    kinds={"duckdb"},
    deps=[event_days],
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    automation_condition=_TOUCHED_HOURLY,
    pool=POOL,
    retry_policy=RETRIES,
)
@actionable
def user_days(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """What each user did and earned on each UTC day; late events change days long past."""
    days = context.partition_key_range
    with warehouse_of(karmalake.settings, karmalake.snapshot().version) as warehouse:
        for totals in warehouse.sql(_DAYS, [days.start, days.end]).to_dicts():
            context.add_asset_metadata(partition_key=totals.pop("day"), metadata=totals)
        return dg.MaterializeResult(
            metadata={"lake_version": warehouse.info.lake_version, **_columns(warehouse, "user_days")}
        )


@dg.asset(
    group_name="scores",
    kinds={"duckdb"},
    deps=[user_days],
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    automation_condition=_TOUCHED_HOURLY,
    pool=POOL,
    retry_policy=RETRIES,
)
@actionable
def trends(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """What each UTC day came to: activity, ratings with their band, how points are spread, suspensions.

    Every number is metadata of its day, so that Dagster plots it over the days.
    """
    days = context.partition_key_range
    with warehouse_of(karmalake.settings, karmalake.snapshot().version) as warehouse:
        first, last = date.fromisoformat(days.start), date.fromisoformat(days.end)
        daily = warehouse.trend("daily", since=first, until=last + timedelta(days=1)).select(_BY_ACTION)
        for row in by_day(warehouse, first, last).to_dicts():
            day = row.pop("day")
            numbers = {name: value for name, value in row.items() if value is not None}
            actions = [action[1:] for action in daily.rows() if action[0] == day]
            numbers["by_action"] = dg.MetadataValue.md(_markdown(_BY_ACTION[1:], actions))
            context.add_asset_metadata(partition_key=day.isoformat(), metadata=numbers)
        return dg.MaterializeResult(metadata={"lake_version": warehouse.info.lake_version})


@dg.asset(group_name="scores", kinds={"duckdb"}, deps=[reputation], freshness_policy=NIGHTLY)
@actionable
def anomalies(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Review bombs, bursts by rater, reciprocal rings and drifts in all history: how many, and the newest of them.

    Whose they are says `karmalake trend NAME`: what Dagster stores names no user, since an erasure does not reach it.
    """
    with Warehouse(karmalake.settings.warehouse_path) as warehouse:
        alarms = {name: warehouse.trend(name) for name in _ANOMALIES}
    counts = {name: rows.height for name, rows in alarms.items()}
    shown = [(name, *row) for name, rows in alarms.items() for row in rows.select(_EVIDENCE).rows()]
    newest = sorted(shown, key=lambda row: row[1], reverse=True)[:_NEWEST]
    preview = dg.MetadataValue.md(_markdown(["anomaly", *_EVIDENCE], newest))
    return dg.MaterializeResult(metadata={"dagster/row_count": sum(counts.values()), **counts, "newest": preview})


@dg.asset(
    group_name="serving",
    kinds={"redis"},
    deps=[reputation],
    pool=POOL,
    retry_policy=RETRIES,
    freshness_policy=_FRESH,
)
@actionable
def reputation_cache(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """One JSON document a user in Redis: writes those that changed, or all if Redis lost them."""
    published = publish_warehouse(karmalake.settings)
    metadata = {
        "dagster/row_count": published.written + published.unchanged,
        "written": published.written,
        "deleted": published.deleted,
        "in_full": published.full,
        "seconds": published.seconds,
    }
    return dg.MaterializeResult(metadata=metadata)


def _columns(warehouse: Warehouse, table: str) -> dict[str, Any]:
    columns = warehouse.sql(_COLUMNS.format(table=table)).rows()
    return {"dagster/column_schema": dg.TableSchema([dg.TableColumn(name, kind.lower()) for name, kind in columns])}


def _markdown(header: list[str], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ["---"] * len(header), *(map(_shown, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):  # an id, or an action_type: whatever a producer sent
        return as_code(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
