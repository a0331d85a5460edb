"""History by day: files loaded into the lake without the bus, thirty days per run.

The location of the files is a setting, not run config: Dagster launches a range of days from its page only for assets
without required config.
"""

from pathlib import Path
from typing import Any

import dagster as dg

from assets.failures import RETRIES, explain_failures, failure
from assets.partitions import asset_by_day, requested_days
from assets.resources import NO_CONFIG, Karmalake
from pipelines.backfill import FileSummary, backfill, day_file, history_rows, summarize_files
from pipelines.boundary.private_files import message_of
from pipelines.errors import CorruptionError, KarmalakeError, RejectedError, UsageError
from pipelines.ingest.file import open_file
from pipelines.mapping.source_files import SourceFile
from pipelines.operate.dead_letters import close_accepted
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping

_DAYS_PER_RUN = 30
"""Days per run: starting a process costs as much as loading a day; a killed run is repeated only for its days."""
_MAX_EXAMPLES = 3


@asset_by_day(
    dg.BackfillPolicy.multi_run(max_partitions_per_run=_DAYS_PER_RUN),
    group_name="lake",
    kinds={"parquet", "deltalake"},
    retry_policy=RETRIES,
    config_schema=NO_CONFIG,
)
@explain_failures
def history(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """One file of history per day, loaded without the bus; data already loaded is skipped. Settings locate the files.

    Days can load concurrently with each other and with ingest; a killed run loses nothing. The metadata of a day is the
    account of its file from the lake's own records, over all attempts. A day without a file, or with a file that is
    refused, fails alone: the run fails after it has loaded the other days.
    """
    settings = karmalake.settings
    rows = history_rows(settings)
    requested_days(context, karmalake.days)
    files, failed = dict[str, Path](), dict[str, KarmalakeError | PermissionError]()
    for number, day in enumerate(context.partition_keys, 1):
        try:
            files |= _load(context, settings, rows, day)
        except (RejectedError, UsageError, PermissionError) as error:
            failed[day] = error
        state = "failed" if day in failed else "done"
        context.log.info("%s: %s (%d of %d days of this run)", day, state, number, len(context.partition_keys))
    accounts = _accounts(settings, rows, files)
    failed |= {day: _mismatch(account) for day, account in accounts.items() if not account.reconciles}
    loaded = {day: _metadata(account) for day, account in accounts.items() if day not in failed}
    if failed:
        _report(context, loaded)
        raise _days_failed(failed, len(context.partition_keys))
    for day, metadata in loaded.items():
        context.add_asset_metadata(partition_key=day, metadata=metadata)
    return dg.MaterializeResult()


def _load(
    context: dg.AssetExecutionContext, settings: Settings, rows: ColumnMapping | SourceFile, day: str
) -> dict[str, Path]:
    """Load the file of a day; return it by its day, or nothing if there is none and days may be missing."""
    path = day_file(settings, rows, day)
    if path is None:
        return {}
    commits = backfill(settings, path, rows)
    if commits:
        source = open_file(path, rows, settings)
        close_accepted(settings, [(source.topic_id, source.topic)])
    context.log.info("%s: %d commits", day, commits)
    return {day: path}


def _accounts(settings: Settings, rows: ColumnMapping | SourceFile, files: dict[str, Path]) -> dict[str, FileSummary]:
    summaries = summarize_files(settings, list(files.values()), rows) if files else []
    return dict(zip(files, summaries, strict=True))


def _mismatch(account: FileSummary) -> CorruptionError:
    return CorruptionError(f"the counts do not add up: {account}; run `karmalake verify`")


def _report(context: dg.AssetExecutionContext, loaded: dict[str, dict[str, Any]]) -> None:
    """Report the days that a failing run has loaded: Dagster reports days only of a step that succeeds."""
    for day, metadata in loaded.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=day, metadata=metadata))


def _days_failed(failed: dict[str, KarmalakeError | PermissionError], days: int) -> dg.Failure:
    """Return the failure of a run: the first failed days with their errors, and the code of the first one."""
    shown = "; ".join(f"{day}: {message_of(error)}" for day, error in list(failed.items())[:_MAX_EXAMPLES])
    text = f"{len(failed)} of {days} days failed, the others are loaded. {shown}"
    return failure(next(iter(failed.values())), text)


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
