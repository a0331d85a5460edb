"""History by day: files that go into the lake without the bus, thirty days to a run."""

from typing import Any

import dagster as dg

from assets.failures import RETRIES, actionable
from assets.partitions import DAYS
from assets.resources import Karmalake
from pipelines.backfill import Account, account_for, backfill, files_of, mapping_of
from pipelines.errors import CorruptionError

_DAYS_A_RUN = 30
"""Starting a process costs as much as loading a day or more; a run that is killed is repeated over its days only."""


@dg.asset(
    group_name="lake",
    kinds={"parquet", "deltalake"},
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=_DAYS_A_RUN),
    retry_policy=RETRIES,
)
@actionable
def history(context: dg.AssetExecutionContext, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """A file of history for each day, without the bus: what is loaded already is passed over. Settings say where it is.

    Days load beside each other and beside ingest; a run that is killed loses nothing. The metadata of a day is the
    account of its file by the lake's own records, over all attempts.
    """
    settings = karmalake.settings
    mapping, files = mapping_of(settings.history), files_of(settings.history, context.partition_keys)
    for number, (day, path) in enumerate(files.items(), 1):
        commits = backfill(settings, path, mapping, lambda _: None)
        context.log.info("%s: %d commits (%d of %d days of this run)", day, commits, number, len(files))
    accounts = dict(zip(files, account_for(settings, list(files.values()), mapping), strict=True)) if files else {}
    for day, account in accounts.items():
        context.add_asset_metadata(partition_key=day, metadata=_metadata(account))
    wrong = [str(account) for account in accounts.values() if not account.adds_up]
    if wrong:
        raise CorruptionError(f"{len(wrong)} files do not add up, such as {wrong[0]}: run `karmalake verify`")
    return dg.MaterializeResult()


def _metadata(account: Account) -> dict[str, Any]:
    counts = ("commits", "read", "accepted", "duplicates", "conflicts", "dead_letters", "erased")
    reasons = "; ".join(f"{reason}: {rows}" for reason, rows in account.reasons.items())
    return {
        "dagster/row_count": account.accepted,
        "file": dg.MetadataValue.path(account.path),
        "rows": account.rows,
        **{count: getattr(account, count) for count in counts},
        "dead_letters_by_reason": reasons or "none",
    }
