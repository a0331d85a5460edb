"""Upkeep: file compaction, and the audit that nothing is lost or duplicated."""

from dataclasses import asdict
from datetime import timedelta

import dagster as dg

from assets.failures import RETRIES, explain_failures
from assets.lake import POOL, events
from assets.resources import NO_CONFIG, Karmalake
from pipelines.lake.feed_retention import drop_old_changes
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.audit import audit as compare

NIGHTLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=50), warn_window=timedelta(hours=26))
"""Allows one missed night."""
_WEEKLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=15), warn_window=timedelta(days=8))


@dg.asset(
    group_name="upkeep",
    kinds={"deltalake"},
    deps=[events],
    pool=POOL,
    retry_policy=RETRIES,
    config_schema=NO_CONFIG,
    freshness_policy=NIGHTLY,
)
@explain_failures
def compacted_files(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Merges small files of the lake, sorted by user, and deletes orphaned files; changes no events.

    Removes changes of the feed that are older than the setting feed.keep_days.
    """
    settings = karmalake.settings
    lake = open_lake(settings.lake_root)
    done = compact(lake, settings.lake.compact_after_files, lambda step: context.log.info("merged %s", step))
    dropped = drop_old_changes(lake, settings.feed)
    removed = vacuum(lake, settings.lake.vacuum_retention_hours)
    files = {
        "files_merged": sum(table.files_before for table in done),
        "files_written": sum(table.files_after for table in done),
        "files_removed": len(removed),
        "feed_changes_removed": dropped,
    }
    return dg.MaterializeResult(metadata=files)


@dg.asset(
    group_name="upkeep",
    kinds={"kafka", "deltalake"},
    deps=[events],
    retry_policy=RETRIES,
    config_schema=NO_CONFIG,
    freshness_policy=_WEEKLY,
    check_specs=[dg.AssetCheckSpec("nothing_is_lost_or_duplicated", asset="audit")],
)
@explain_failures
def audit(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Compares every topic, read again record by record, with the raw files of the lake, by code independent of ingest.

    The metadata contains the result as JSON, as printed by `karmalake audit --json`. Takes minutes for millions of
    records.
    """
    found = compare(karmalake.settings)
    partitions = [asdict(partition) for partition in found.partitions]
    totals = found.totals
    check = dg.AssetCheckResult(check_name="nothing_is_lost_or_duplicated", passed=found.passed, metadata=totals)
    metadata = {"dagster/row_count": found.events, **totals, "audit": totals | {"partitions": partitions}}
    return dg.MaterializeResult(metadata=metadata, check_results=[check])
