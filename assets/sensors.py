"""Sensors, which report what other processes did. All are off by default.

Dagster retains reported events indefinitely, so sensors report totals, and at most every five minutes.
"""

from collections.abc import Callable
from typing import Any

import dagster as dg
import polars as pl

from assets.lake import event_days, events
from assets.resources import Karmalake
from assets.scores import reputation, reputation_cache, trends, user_days
from pipelines.lake.commit_log import commits_after
from pipelines.lake.tables import COUNTS
from pipelines.serving.read import published

_EVERY_FIVE_MINUTES = 300
_NO_LAKE = dg.SkipReason("there is no lake yet: the first drain creates it")


def sensors(karmalake: Karmalake) -> list[dg.SensorDefinition]:
    """Return the sensors over the assets of a graph."""
    late_days = dg.AutomationConditionSensorDefinition(
        "late_days",
        target=karmalake.select(user_days, trends),
        minimum_interval_seconds=60,
        description="Recompute days to which events were added: once an hour, all of them in one backfill.",
    )
    return [
        _sensor(commits, karmalake.select(events)),
        _sensor(updated_days, karmalake.select(event_days)),
        _sensor(publications, karmalake.select(reputation, reputation_cache)),
        late_days,
    ]


def commits(
    context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]
) -> dg.SensorResult | dg.SkipReason:
    """Report commits made outside Dagster, by `karmalake stream` or `drain`, as one materialization.

    The cursor is the last reported lake version. Commits up to the last run of `events` are covered by its own
    materialization.
    """
    if not karmalake.has_lake():
        return _NO_LAKE
    key = karmalake.key(events)
    last = max(int(context.cursor or 0), _version_of_last_run(context.instance, key))
    rows = commits_after(karmalake.snapshot(), last)
    if not rows.height:
        return dg.SensorResult(cursor=str(last))
    version: int = rows["version"].to_list()[-1]
    totals: dict[str, int] = rows.select(pl.sum(*COUNTS)).row(0, named=True)
    metadata = {"lake_version": version, "commits": rows.height, **totals}
    return dg.SensorResult(asset_events=[dg.AssetMaterialization(key, metadata=metadata)], cursor=str(version))


def updated_days(
    context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]
) -> dg.SensorResult | dg.SkipReason:
    """Report the days to which commits have added events since the last tick, each once.

    The cursor is the last lake version processed, and the days that are no partition yet: one that has not begun, or
    one before the first day, which a reload of the code location adds. They wait there. Without a cursor, all days are
    reported, which causes a backfill.
    """
    if not karmalake.has_lake():
        return _NO_LAKE
    last, *waiting = (context.cursor or "0").split()
    rows = commits_after(karmalake.snapshot(), int(last))
    version = rows["version"].to_list()[-1] if rows.height else int(last)
    touched = sorted({*waiting, *map(str, rows["days"].explode().drop_nulls().to_list())})
    known = set(karmalake.days.get_partition_keys())
    unknown = [day for day in touched if day not in known]
    _warn_of_earlier_days(context, karmalake, unknown)
    return dg.SensorResult(
        asset_events=[
            dg.AssetMaterialization(karmalake.key(event_days), partition=day, metadata={"lake_version": version})
            for day in touched
            if day in known
        ],
        cursor=" ".join([str(version), *unknown]),
    )


def publications(
    context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]
) -> dg.SensorResult | dg.SkipReason:
    """Report the latest publication made outside Dagster, and the scores in it; earlier ones are skipped."""
    info = published(karmalake.settings)
    if info is None:
        return dg.SkipReason("nothing is published yet")
    reported = context.instance.get_latest_materialization_event(karmalake.key(reputation_cache))
    if reported is not None and reported.timestamp >= info.published_at.timestamp():
        return dg.SkipReason("the latest publication is already reported")
    metadata = {
        "dagster/row_count": info.documents,
        "lake_version": info.stamp.lake_version,
        "published_at": info.published_at.isoformat(),
        "staleness_seconds": info.staleness_seconds,
    }
    keys = [karmalake.key(asset) for asset in (reputation, reputation_cache)]
    return dg.SensorResult(asset_events=[dg.AssetMaterialization(key, metadata=metadata) for key in keys])


def _sensor(evaluate: Callable[..., Any], assets: dg.AssetSelection) -> dg.SensorDefinition:
    return dg.SensorDefinition(
        evaluate.__name__,
        evaluation_fn=evaluate,
        asset_selection=assets,
        minimum_interval_seconds=_EVERY_FIVE_MINUTES,
        description=evaluate.__doc__,
    )


def _warn_of_earlier_days(context: dg.SensorEvaluationContext, karmalake: Karmalake, unknown: list[str]) -> None:
    first = karmalake.days.get_first_partition_key() or ""
    earlier = [day for day in unknown if day < first]
    if earlier:
        context.log.warning(
            "%d days before %s wait until the code location is reloaded, such as %s", len(earlier), first, earlier[0]
        )


def _version_of_last_run(instance: dg.DagsterInstance, key: dg.AssetKey) -> int:
    event = instance.get_latest_materialization_event(key)
    if event is None or event.asset_materialization is None or not event.run_id:
        return 0
    version = event.asset_materialization.metadata["lake_version"].value
    return version if isinstance(version, int) else 0
