"""History by day: files loaded into the lake without the bus, thirty days per run.

The location of the files is a setting, not run config: Dagster launches a range of days from its page only for assets
without required config.
"""

from typing import Any

import dagster as dg

from assets.failures import RETRIES, explain_failures
from assets.partitions import DAYS
from assets.resources import NO_CONFIG, Karmalake
from pipelines.backfill import FileSummary, backfill, find_day_files, history_rows, summarize_files
from pipelines.errors import CorruptionError
from pipelines.ingest.file import open_file
from pipelines.operate.dead_letters import close_accepted

_DAYS_PER_RUN = 30
"""Days per run: starting a process costs as much as loading a day; a killed run is repeated only for its days."""


@dg.asset(
    group_name="lake",
    kinds={"parquet", "deltalake"},
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=_DAYS_PER_RUN),
    retry_policy=RETRIES,
    config_schema=NO_CONFIG,
)
@explain_failures
def history(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """One file of history per day, loaded without the bus; data already loaded is skipped. Settings locate the files.

    Days can load concurrently with each other and with ingest; a killed run loses nothing. The metadata of a day is the
    account of its file from the lake's own records, over all attempts.
    """
    settings = karmalake.settings
    rows = history_rows(settings)
    files = find_day_files(settings, rows, context.partition_keys)
    for number, (day, path) in enumerate(files.items(), 1):
        commits = backfill(settings, path, rows)
        if commits:
            source = open_file(path, rows, settings)
            close_accepted(settings, source.topic_id, source.topic)
        context.log.info("%s: %d commits (%d of %d days of this run)", day, commits, number, len(files))
    accounts = dict(zip(files, summarize_files(settings, list(files.values()), rows), strict=True)) if files else {}
    for day, account in accounts.items():
        context.add_asset_metadata(partition_key=day, metadata=_metadata(account))
    wrong = [str(account) for account in accounts.values() if not account.reconciles]
    if wrong:
        raise CorruptionError(f"{len(wrong)} files do not add up, such as {wrong[0]}: run `karmalake verify`")
    return dg.MaterializeResult()


def _metadata(account: FileSummary) -> dict[str, Any]:
    counts = ("commits", "read", "filtered", "made", "accepted", "duplicates", "conflicts", "dead_letters", "erased")
    reasons = "; ".join(f"{reason}: {rows}" for reason, rows in account.reasons.items())
    return {
        "dagster/row_count": account.accepted,
        "file": dg.MetadataValue.path(account.path),
        "rows": account.rows,
        **{count: getattr(account, count) for count in counts},
        "dead_letters_by_reason": reasons or "none",
    }
