"""The checks: those of `karmalake verify`, one by one, and how far the lake is behind; each with its evidence."""

from collections.abc import Iterable

import dagster as dg

from assets.failures import actionable
from assets.lake import dead_letters, events
from assets.resources import Karmalake
from assets.scores import reputation_cache
from pipelines.operate.check import Check
from pipelines.operate.lag.watch import observe_lag
from pipelines.operate.verify import totals, verify_lake
from pipelines.operate.verify_served import verify_fresh, verify_served

_MOST_DEAD_LETTERS = 0.01
"""Share of all records read above which somebody should look."""
_RECONCILIATION = {
    "offsets_add_up": "Every offset below a checkpoint is in one commit, and what became of its records adds up.",
    "each_commits_events_are_there": "The lake has as many events of each commit as it says.",
    "no_event_id_twice": "Each event_id is in the lake once.",
    "each_dead_letter_is_there": "As many dead letters are kept as were counted.",
    "each_conflict_is_there": "As many conflicts are kept as were counted.",
}


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(name, asset=events, blocking=True, description=description)
        for name, description in _RECONCILIATION.items()
    ],
    name="reconciliation",
)
def reconciliation(karmalake: dg.ResourceParam[Karmalake]) -> Iterable[dg.AssetCheckResult]:
    """Everything that was read is accounted for, and no event is there twice; blocks what is derived from it."""
    for check in verify_lake(karmalake.snapshot()):
        yield _result(check, events, _slug(check.name))


@dg.asset_check(asset=events)
@actionable
def ingest_keeps_up(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """No record waits on the bus for longer than the settings allow."""
    settings = karmalake.settings
    observed = observe_lag(settings)
    measured = observed.measurement
    metadata = {
        "lag_seconds": "unknown: no valid record time" if measured.lag_seconds is None else measured.lag_seconds,
        "limit_seconds": settings.lag.max_seconds,
        "lag_records": measured.lag_records,
        "advice": "\n".join(observed.advice) or "none",
    }
    passed = measured.lag_seconds is not None and measured.lag_seconds <= settings.lag.max_seconds
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


@dg.asset_check(asset=dead_letters)
@actionable
def dead_letter_share(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """Few records are rejected."""
    counts = totals(karmalake.snapshot())
    share = counts.dead_letters / max(1, counts.read)
    metadata = {"share": share, "dead_letters": counts.dead_letters, "read": counts.read, "limit": _MOST_DEAD_LETTERS}
    return dg.AssetCheckResult(
        passed=share <= _MOST_DEAD_LETTERS, severity=dg.AssetCheckSeverity.WARN, metadata=metadata
    )


@dg.asset_check(asset=reputation_cache)
@actionable
def redis_serves_what_the_lake_says(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """For a sample of users, the document in Redis is the one that the warehouse gives."""
    [check] = verify_served(karmalake.settings)
    return _result(check, reputation_cache, "redis_serves_what_the_lake_says")


@dg.asset_check(asset=reputation_cache)
@actionable
def what_is_served_is_fresh(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """What is served is not older than the settings allow."""
    check = verify_fresh(karmalake.settings)
    return _result(check, reputation_cache, "what_is_served_is_fresh", dg.AssetCheckSeverity.WARN)


def _result(
    check: Check,
    asset: dg.AssetsDefinition,
    name: str,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    metadata = {"promise": check.promise, "evidence": check.evidence or "no exception was found"}
    return dg.AssetCheckResult(
        asset_key=asset.key, check_name=name, passed=check.passed is True, severity=severity, metadata=metadata
    )


def _slug(name: str) -> str:
    return name.replace("'", "").replace(" ", "_")
