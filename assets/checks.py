"""The asset checks: those of `karmalake verify`, one by one, and the lag; each with its evidence.

Those in MINUTELY cost the same however long the history is. The others read all of it, so they run at night, or when
their asset is materialized by hand.
"""

from collections.abc import Iterable, Sequence

import dagster as dg

from assets.failures import explain_failures
from assets.lake import dead_letters, events
from assets.resources import NO_CONFIG, Karmalake
from assets.scores import reputation_cache
from pipelines.boundary.text import escape_lines
from pipelines.operate.check import Check
from pipelines.operate.lag.measure import Measurement, longest_lag_seconds
from pipelines.operate.lag.observe import all_advice, observe_lags
from pipelines.operate.verify import totals, verify_lake
from pipelines.operate.verify_served import verify_fresh, verify_served

_MAX_DEAD_LETTER_SHARE = 0.01
"""Maximum share of rejected records before the check warns."""
_RECONCILIATION = {
    "offsets_add_up": "Every offset below a checkpoint is in exactly one commit, with the outcome of each record.",
    "commit_counts_match_the_events": "The lake has as many events of each commit as the commit counted.",
    "no_duplicate_event_id": "Each event_id is in the lake exactly once.",
    "each_dead_letter_is_stored": "The lake has as many dead letters as commits counted.",
    "each_conflict_is_stored": "The lake has as many conflicts as commits counted.",
}


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(name, asset=events, blocking=True, description=description)
        for name, description in _RECONCILIATION.items()
    ],
    name="reconciliation",
    config_schema=NO_CONFIG,
)
def reconciliation(karmalake: dg.ResourceParam[Karmalake]) -> Iterable[dg.AssetCheckResult]:
    """Every record read is accounted for, and no event is stored twice.

    Reads every event. A failure blocks the downstream assets of the same run.
    """
    yield from _reconcile(karmalake)


@dg.asset_check(asset=events, config_schema=NO_CONFIG)
@explain_failures
def ingest_keeps_up(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """No record waits on the bus longer than the settings allow."""
    settings = karmalake.settings
    observed = observe_lags(settings)
    measured = [each.measurement for each in observed]
    seconds = longest_lag_seconds(measured)
    metadata = {
        "lag_seconds": _unknown(measured) if seconds is None else seconds,
        "limit_seconds": settings.lag.max_seconds,
        "lag_records": sum(each.lag_records for each in measured),
        "topics": ", ".join(each.topic for each in measured),
        "advice": "\n".join(all_advice(observed)) or "none",
    }
    passed = seconds is not None and seconds <= settings.lag.max_seconds
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


@dg.asset_check(asset=dead_letters, config_schema=NO_CONFIG)
@explain_failures
def dead_letter_share(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """The share of rejected records is below the limit."""
    counts = totals(karmalake.snapshot())
    share = counts.dead_letters / max(1, counts.read)
    metadata = {
        "share": share,
        "dead_letters": counts.dead_letters,
        "read": counts.read,
        "limit": _MAX_DEAD_LETTER_SHARE,
    }
    return dg.AssetCheckResult(
        passed=share <= _MAX_DEAD_LETTER_SHARE, severity=dg.AssetCheckSeverity.WARN, metadata=metadata
    )


@dg.asset_check(asset=reputation_cache, config_schema=NO_CONFIG)
@explain_failures
def served_documents_match_the_lake(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """For a sample of users, the document in the serving store matches the warehouse."""
    [check] = verify_served(karmalake.settings)
    return _result(check, "served_documents_match_the_lake")


@dg.asset_check(asset=reputation_cache, config_schema=NO_CONFIG)
@explain_failures
def served_scores_are_fresh(karmalake: dg.ResourceParam[Karmalake]) -> dg.AssetCheckResult:
    """The served scores are not older than the settings allow."""
    check = verify_fresh(karmalake.settings)
    return _result(check, "served_scores_are_fresh", dg.AssetCheckSeverity.WARN)


MINUTELY = [ingest_keeps_up, served_documents_match_the_lake, served_scores_are_fresh]
"""The checks of the job that runs each minute."""
CHECKS = [reconciliation, dead_letter_share, *MINUTELY]
"""All checks but the audit, which is part of its asset."""


@explain_failures
def _reconcile(karmalake: Karmalake) -> list[dg.AssetCheckResult]:
    return [_result(check, _slug(check.name)) for check in verify_lake(karmalake.snapshot())]


def _unknown(measured: Sequence[Measurement]) -> str:
    return "unknown: " + next(each.unknown_time for each in measured if each.lag_seconds is None)


def _result(
    check: Check,
    name: str,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    metadata = {"promise": check.promise, "evidence": escape_lines(check.evidence) or "no exception was found"}
    return dg.AssetCheckResult(check_name=name, passed=check.passed is True, severity=severity, metadata=metadata)


def _slug(name: str) -> str:
    return name.replace("'", "").replace(" ", "_")
