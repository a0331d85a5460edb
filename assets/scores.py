"""The warehouse and what is read from it.

One derivation makes every table of the warehouse from one snapshot of the lake. So `reputation` is what derives, and
`user_days` and `trends` say of the same warehouse what is in it; a day of `user_days` is materialized when the
warehouse holds that day as the newest lake has it. A backfill of many days derives once.
"""

from datetime import timedelta
from typing import Any

import dagster as dg

from assets.lake import POOL, events
from assets.partitions import DAYS
from assets.resources import Karmalake
from pipelines.errors import UsageError
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
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
_EVIDENCE = ["user_id", "day", "expected", "observed", "score"]
_NEWEST = 20
_FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1), warn_window=timedelta(minutes=15))
"""By the last publication, whoever made it: the sensor `publications` reports those of `karmalake stream`."""
_COLUMNS = "SELECT column_name, column_type FROM (DESCRIBE {table})"


@dg.asset(group_name="scores", kinds={"duckdb"}, deps=[events], pool=POOL)
def reputation(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Everybody's status and scores by the policy in force, as of now: computes who was touched since the last time."""
    settings = karmalake.settings
    derived = refresh_warehouse(settings)
    metadata = {
        "dagster/row_count": derived.users,
        "lake_version": derived.lake_version,
        "as_of": derived.as_of.isoformat(),
        "events": derived.events,
        "counted": derived.counted,
        "touched_users": derived.touched,
        "rebuilt": derived.rebuilt or "no",
        "seconds": derived.seconds,
    }
    return dg.MaterializeResult(metadata={**metadata, **_columns(settings, "reputation")})


@dg.asset(
    group_name="scores",
    kinds={"duckdb"},
    deps=[events],
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=POOL,
)
def user_days(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """What each user did and earned on each UTC day; late events change days long past."""
    days = context.partition_key_range
    with _current_warehouse(karmalake) as warehouse:
        for totals in warehouse.sql(_DAYS, [days.start, days.end]).to_dicts():
            context.add_asset_metadata(partition_key=totals.pop("day"), metadata=totals)
    return dg.MaterializeResult(metadata=_columns(karmalake.settings, "user_days"))


@dg.asset(group_name="scores", kinds={"duckdb"}, deps=[reputation])
def trends(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """What happened, why it counted or not, and how scores are spread, day by day."""
    with Warehouse(karmalake.settings.warehouse_path) as warehouse:
        daily = warehouse.trend("daily")
        rows = {f"{name}_rows": warehouse.trend(name).height for name in ("daily", "scores", "reasons")}
    newest = daily.sort("day").tail(5).select("day", "action_type", "events", "active_users")
    preview = dg.MetadataValue.md(_markdown(newest.columns, newest.rows()))
    return dg.MaterializeResult(metadata={"dagster/row_count": sum(rows.values()), **rows, "newest": preview})


@dg.asset(group_name="scores", kinds={"duckdb"}, deps=[reputation])
def anomalies(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Review bombs, bursts by rater, reciprocal rings and drifts in all history: how many, and the newest of them."""
    with Warehouse(karmalake.settings.warehouse_path) as warehouse:
        alarms = {name: warehouse.trend(name) for name in _ANOMALIES}
    counts = {name: rows.height for name, rows in alarms.items()}
    shown = [(name, *row) for name, rows in alarms.items() for row in rows.select(_EVIDENCE).rows()]
    newest = sorted(shown, key=lambda row: row[2], reverse=True)[:_NEWEST]
    preview = dg.MetadataValue.md(_markdown(["anomaly", *_EVIDENCE], newest))
    return dg.MaterializeResult(metadata={"dagster/row_count": sum(counts.values()), **counts, "newest": preview})


@dg.asset(group_name="serving", kinds={"redis"}, deps=[reputation], pool=POOL, freshness_policy=_FRESH)
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


def _current_warehouse(karmalake: Karmalake) -> Warehouse:
    """Open the warehouse, derived anew if the lake has moved on since."""
    settings, newest = karmalake.settings, karmalake.snapshot().version
    try:
        warehouse = Warehouse(settings.warehouse_path)
    except UsageError:
        refresh_warehouse(settings)
        return Warehouse(settings.warehouse_path)
    if warehouse.info.lake_version < newest:
        refresh_warehouse(settings)
        warehouse.refresh()
    return warehouse


def _columns(settings: Settings, table: str) -> dict[str, Any]:
    with Warehouse(settings.warehouse_path) as warehouse:
        columns = warehouse.sql(_COLUMNS.format(table=table)).rows()
    return {"dagster/column_schema": dg.TableSchema([dg.TableColumn(name, kind.lower()) for name, kind in columns])}


def _markdown(header: list[str], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_shown, line))} |" for line in lines)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")
