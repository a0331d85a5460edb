"""Upkeep: files in order, and the proof that nothing was lost or doubled."""

from dataclasses import asdict
from datetime import timedelta

import dagster as dg

from assets.failures import RETRIES, actionable
from assets.lake import POOL, events
from assets.resources import Karmalake
from pipelines.lake.tables import create_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.audit import audit as compare

NIGHTLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=50), warn_window=timedelta(hours=26))
"""One night may be missed."""
_WEEKLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=15), warn_window=timedelta(days=8))


@dg.asset(
    group_name="upkeep",
    kinds={"deltalake"},
    deps=[events],
    pool=POOL,
    retry_policy=RETRIES,
    freshness_policy=NIGHTLY,
)
@actionable
def compacted_files(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """The lake in few files, sorted by user, and without orphans. Changes no row."""
    settings = karmalake.settings
    lake = create_lake(settings.lake_root)
    done = compact(lake, settings.lake.compact_after_files, lambda step: context.log.info("merged %s", step))
    removed = vacuum(lake, settings.lake.vacuum_retention_hours)
    files = {
        "files_merged": sum(table.files_before for table in done),
        "files_written": sum(table.files_after for table in done),
        "files_removed": len(removed),
    }
    return dg.MaterializeResult(metadata=files)


@dg.asset(
    group_name="upkeep",
    kinds={"kafka", "deltalake"},
    deps=[events],
    retry_policy=RETRIES,
    freshness_policy=_WEEKLY,
    check_specs=[dg.AssetCheckSpec("nothing_is_lost_or_doubled", asset="audit")],
)
@actionable
def audit(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """The topic read again, record by record, and the lake's files raw, by code that shares nothing with ingest.

    The metadata has it as JSON, as `karmalake audit --json` prints it. It is slow: minutes for millions of records.
    """
    found = compare(karmalake.settings)
    partitions = [asdict(partition) for partition in found.partitions]
    totals = {"events": found.events, "lost": found.lost, "doubled": found.doubled}
    check = dg.AssetCheckResult(check_name="nothing_is_lost_or_doubled", passed=found.passed, metadata=totals)
    metadata = {"dagster/row_count": found.events, **totals, "audit": totals | {"partitions": partitions}}
    return dg.MaterializeResult(metadata=metadata, check_results=[check])
