"""Sensors, which report what other processes did. All are off by default.

Dagster retains reported events indefinitely, so sensors report totals, and at most every five minutes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
import polars as pl

from assets.failures import explain_failures
from assets.lake import event_days, events
from assets.resources import Karmalake
from assets.scores import reputation, reputation_cache, trends, user_days
from pipelines.lake.commit_log import commits_after
from pipelines.lake.tables import COUNTS, Snapshot
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

    The cursor is the last reported version of the lake. Commits up to the last run of `events` are covered by its own
    materialization.
    """
    if not karmalake.has_lake():
        return _NO_LAKE
    key, snapshot = karmalake.key(events), karmalake.snapshot()
    last, _ = _read_cursor(context, snapshot)
    rows = commits_after(snapshot, max(last, _version_of_last_run(context.instance, key, snapshot)))
    metadata = {
        "lake_version": snapshot.version,
        "commits": rows.height,
        **rows.select(pl.sum(*COUNTS)).row(0, named=True),
    }
    return dg.SensorResult(
        asset_events=[dg.AssetMaterialization(key, metadata=metadata)] if rows.height else [],
        cursor=_cursor(snapshot),
    )


def updated_days(
    context: dg.SensorEvaluationContext, karmalake: dg.ResourceParam[Karmalake]
) -> dg.SensorResult | dg.SkipReason:
    """Report the days to which commits have added events since the last tick, each once.

    The cursor is the last version of the lake processed, and the days that are no partition yet: one that has not
    begun, or one before the first day, which a reload of the code location adds. They wait there. Without a cursor, and
    for another lake, all days are reported, which causes a backfill.
    """
    if not karmalake.has_lake():
        return _NO_LAKE
    snapshot = karmalake.snapshot()
    last, waiting = _read_cursor(context, snapshot)
    rows = commits_after(snapshot, last)
    touched = sorted({*waiting, *map(str, rows["days"].explode().drop_nulls().to_list())})
    known = set(karmalake.days.get_partition_keys())
    unknown = [day for day in touched if day not in known]
    _warn_of_earlier_days(context, karmalake, unknown)
    return dg.SensorResult(
        asset_events=[
            dg.AssetMaterialization(
                karmalake.key(event_days), partition=day, metadata={"lake_version": snapshot.version}
            )
            for day in touched
            if day in known
        ],
        cursor=_cursor(snapshot, unknown),
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
        evaluation_fn=explain_failures(evaluate),
        asset_selection=assets,
        minimum_interval_seconds=_EVERY_FIVE_MINUTES,
        description=evaluate.__doc__,
    )


def _cursor(snapshot: Snapshot, waiting: Sequence[str] = ()) -> str:
    return " ".join([f"{snapshot.version}@{snapshot.lake_id}", *waiting])


def _read_cursor(context: dg.SensorEvaluationContext, snapshot: Snapshot) -> tuple[int, list[str]]:
    """Return the last version processed and the waiting days; 0 and none for a lake that replaced the one before.

    So does a copy of the lake that has fewer versions.
    """
    place, *waiting = (context.cursor or "0").split()
    version, _, lake_id = place.partition("@")
    if lake_id in {"", snapshot.lake_id} and int(version) <= snapshot.version:
        return int(version), waiting
    context.log.warning("another lake has replaced the one of the last tick: all of it is reported")
    return 0, []


def _warn_of_earlier_days(context: dg.SensorEvaluationContext, karmalake: Karmalake, unknown: list[str]) -> None:
    first = karmalake.days.get_first_partition_key() or ""
    earlier = [day for day in unknown if day < first]
    if earlier:
        context.log.warning(
            "%d days before %s wait until the code location is reloaded, such as %s", len(earlier), first, earlier[0]
        )


def _version_of_last_run(instance: dg.DagsterInstance, key: dg.AssetKey, snapshot: Snapshot) -> int:
    """Return the version of this lake at the end of the last run of `events`; 0 if that was of another one."""
    event = instance.get_latest_materialization_event(key)
    if event is None or event.asset_materialization is None or not event.run_id:
        return 0
    found = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    version = found["lake_version"]
    return version if isinstance(version, int) and found.get("lake_id") == snapshot.lake_id else 0
