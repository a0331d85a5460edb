"""The assets of the warehouse.

One derivation computes every table of the warehouse from one snapshot of the lake. The asset `reputation` runs it;
`user_days` and `trends` report on the same warehouse. A day of them is materialized when the warehouse reflects that
day as of the newest lake version. A backfill of many days derives once. Days to which events are added, however late,
are requested again by their automation condition: once an hour, all of them together.
"""

from datetime import date, timedelta
from typing import Any

import dagster as dg

from assets.failures import RETRIES, explain_failures
from assets.lake import POOL, event_days, events
from assets.partitions import asset_by_day, requested_days
from assets.resources import NO_CONFIG, Karmalake
from assets.upkeep import NIGHTLY
from pipelines.best_effort import best_effort
from pipelines.boundary.text import markdown_code
from pipelines.canary import follow_canary
from pipelines.errors import UsageError
from pipelines.lake.score_changes import read_position
from pipelines.lake.tables import open_lake
from pipelines.refresh import publish_warehouse, refresh_warehouse, require_publishable, wait_for_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.by_day import by_day
from pipelines.reputation.column_help import describe_column
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.reputation.warehouse_file import Access
from pipelines.settings import Settings

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
"""Columns without the user, since erasure does not cover Dagster's storage."""
_MAX_SHOWN = 20
_BY_ACTION = ["day", "action_type", "events", "counted", "active_users", "points", "rating_average"]
_FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1), warn_window=timedelta(minutes=15))
"""Relative to the last run or publication; the sensor `publications` reports those of `karmalake stream`."""
_COLUMNS = "SELECT column_name, column_type FROM (DESCRIBE {table})"


_UPDATED_HOURLY = (
    dg.AutomationCondition.any_deps_updated().since_last_handled()
    & dg.AutomationCondition.cron_tick_passed("5 * * * *")
    & ~dg.AutomationCondition.in_progress()
).with_label("a commit added events to the day; hourly")
"""Applies to days of any age, unlike `eager` and `on_cron`, which consider only the latest day. At most one backfill an
hour, with one run per contiguous range of days, two at a time."""


class PolicyConfig(dg.Config):
    """The policy to compute scores by from now on."""

    policy: str | None = None
    """A policy file or a shipped policy to activate, as `karmalake policy activate` does; null: the active policy."""


@dg.asset(
    group_name="scores",
    kinds={"duckdb"},
    deps=[events],
    pool=POOL,
    retry_policy=RETRIES,
    freshness_policy=_FRESH,
)
@explain_failures
def reputation(config: PolicyConfig, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Status and scores of every user by the active policy, as of now.

    Recomputes the users affected since the last run. A change of policy rebuilds everything;
    the log of the run shows the progress.
    """
    settings = karmalake.settings
    if config.policy is not None:
        chosen = load_policy(config.policy)
        require_publishable(chosen, settings)
        activate(open_lake(settings.lake_root), chosen)
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
        "touched_users": derived.affected_users,
        "rebuilt": derived.rebuild_reason or "no",
        "seconds": derived.seconds,
    }
    return dg.MaterializeResult(metadata={**metadata, **columns})


@asset_by_day(
    dg.BackfillPolicy.single_run(),
    group_name="scores",
    kinds={"duckdb"},
    deps=[event_days],
    automation_condition=_UPDATED_HOURLY,
    pool=POOL,
    retry_policy=RETRIES,
    config_schema=NO_CONFIG,
)
@explain_failures
def user_days(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Activity and points of each user on each UTC day; late events update past days."""
    days = requested_days(context, karmalake.days)
    with wait_for_warehouse(karmalake.settings, karmalake.snapshot().version) as warehouse:
        for totals in warehouse.sql(_DAYS, [days.start, days.end]).to_dicts():
            context.add_asset_metadata(partition_key=totals.pop("day"), metadata=totals)
        return dg.MaterializeResult(
            metadata={"lake_version": warehouse.info.lake_version, **_columns(warehouse, "user_days")}
        )


@asset_by_day(
    dg.BackfillPolicy.single_run(),
    group_name="scores",
    kinds={"duckdb"},
    deps=[user_days],
    automation_condition=_UPDATED_HOURLY,
    pool=POOL,
    retry_policy=RETRIES,
    config_schema=NO_CONFIG,
)
@explain_failures
def trends(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Totals of each UTC day: activity, ratings with their confidence band, the distribution of points, suspensions.

    Every number is metadata of its day, so that Dagster plots it over time.
    """
    days = requested_days(context, karmalake.days)
    with wait_for_warehouse(karmalake.settings, karmalake.snapshot().version) as warehouse:
        first, last = date.fromisoformat(days.start), date.fromisoformat(days.end)
        daily = warehouse.trend("daily", since=first, until=last + timedelta(days=1)).select(_BY_ACTION)
        for row in by_day(warehouse, first, last).to_dicts():
            day = row.pop("day")
            numbers = {name: value for name, value in row.items() if value is not None}
            actions = [action[1:] for action in daily.rows() if action[0] == day]
            numbers["by_action"] = dg.MetadataValue.md(_markdown(_BY_ACTION[1:], actions))
            context.add_asset_metadata(partition_key=day.isoformat(), metadata=numbers)
        return dg.MaterializeResult(metadata={"lake_version": warehouse.info.lake_version})


@dg.asset(group_name="scores", kinds={"duckdb"}, deps=[reputation], freshness_policy=NIGHTLY, config_schema=NO_CONFIG)
@explain_failures
def anomalies(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Review bombs, rater bursts, reciprocal rings and drift in the whole history: counts, and the newest of them.

    `karmalake trend NAME` shows the users. Dagster stores no user_ids, since erasure does not cover its storage.
    """
    settings = karmalake.settings
    _require_warehouse(settings)
    with Warehouse(settings.warehouse_path, access=Access(limits=settings.queries)) as warehouse:
        alarms = {name: warehouse.trend(name) for name in _ANOMALIES}
    counts = {name: rows.height for name, rows in alarms.items()}
    shown = [(name, *row) for name, rows in alarms.items() for row in rows.select(_EVIDENCE).rows()]
    newest = sorted(shown, key=lambda row: row[1], reverse=True)[:_MAX_SHOWN]
    preview = dg.MetadataValue.md(_markdown(["anomaly", *_EVIDENCE], newest))
    return dg.MaterializeResult(metadata={"dagster/row_count": sum(counts.values()), **counts, "newest": preview})


@dg.asset(
    group_name="serving",
    kinds={"redis"},
    deps=[reputation],
    pool=POOL,
    retry_policy=RETRIES,
    freshness_policy=_FRESH,
    config_schema=NO_CONFIG,
)
@explain_failures
def reputation_cache(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """One JSON document per user in Redis: writes those that changed, or all if Redis lost them.

    Then those of a canary. With the feed on, the metadata has the changes that this recorded, and the last number.
    """
    settings = karmalake.settings
    _require_warehouse(settings)
    published = publish_warehouse(settings)
    best_effort(follow_canary, "serving the canary")(settings)
    metadata = {
        "dagster/row_count": published.written + published.unchanged,
        "written": published.written,
        "deleted": published.deleted,
        "in_full": published.full,
        "seconds": published.seconds,
    }
    if published.changes is not None:
        position = read_position(open_lake(settings.lake_root).table("score_changes"))
        metadata |= {"feed_changes": published.changes, "feed_last_number": position.number}
    return dg.MaterializeResult(metadata=metadata)


def _require_warehouse(settings: Settings) -> None:
    if not settings.warehouse_path.exists():
        raise UsageError(f"there is no warehouse at {settings.warehouse_path} yet: materialize `reputation` first")


def _columns(warehouse: Warehouse, table: str) -> dict[str, Any]:
    columns = warehouse.sql(_COLUMNS.format(table=table)).rows()
    described = [
        dg.TableColumn(name, kind.lower(), describe_column("warehouse", table, name)) for name, kind in columns
    ]
    return {"dagster/column_schema": dg.TableSchema(described)}


def _markdown(header: list[str], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ["---"] * len(header), *(map(_shown, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):  # an id or action_type: untrusted text from a producer
        return markdown_code(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
