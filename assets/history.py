"""History by day: files that go into the lake without the bus, thirty days to a run."""

from pathlib import Path
from typing import Any

import dagster as dg

from assets.failures import RETRIES, actionable
from assets.partitions import DAYS
from assets.resources import Karmalake
from pipelines.backfill import Account, account_for, backfill
from pipelines.contract.times import TimeUnit
from pipelines.emit.files import Mapping
from pipelines.errors import CorruptionError, UsageError

_DAYS_A_RUN = 30
"""Starting a process costs as much as loading a day or more; a run that is killed is repeated over its days only."""
_SHOWN = 3


class HistoryFiles(dg.Config):
    """Where a day's file is, and which column is what; as the options of `karmalake backfill`."""

    path: str
    """With {day} where the file's name holds it: /history/ratings-{day}.parquet."""
    user_id: str
    time: str
    time_unit: TimeUnit = "iso"
    action_type: str | None = None
    action_type_column: str | None = None
    metadata: dict[str, str] = {}  # noqa: RUF012 # Dagster copies it
    event_id: str | None = None
    days_may_be_missing: bool = False
    """Whether a day without a file is a day on which nothing happened."""

    def mapping(self) -> Mapping:
        """Return the mapping of the columns; UsageError where it cannot be meant."""
        return Mapping(
            self.user_id,
            self.time,
            self.time_unit,
            self.action_type,
            self.action_type_column,
            tuple(self.metadata.items()),
            self.event_id,
        )

    def files(self, days: list[str]) -> dict[str, Path]:
        """Return the file of each day that has one; UsageError for days without, unless days may be missing."""
        paths = {day: Path(self.path.format(day=day)) for day in days}
        missing = [str(path) for path in paths.values() if not path.exists()]
        if missing and not self.days_may_be_missing:
            error = UsageError(
                f"{len(missing)} of {len(days)} days have no file, such as {', '.join(missing[:_SHOWN])}: "
                "put them there, or set days_may_be_missing; nothing was loaded"
            )
            error.page = "docs/backfilling.md"
            raise error
        return {day: path for day, path in paths.items() if path.exists()}


@dg.asset(
    group_name="lake",
    kinds={"parquet", "deltalake"},
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=_DAYS_A_RUN),
    retry_policy=RETRIES,
)
@actionable
def history(
    context: dg.AssetExecutionContext, config: HistoryFiles, karmalake: dg.ResourceParam[Karmalake]
) -> dg.MaterializeResult:
    """A file of history for each day, without the bus: what is loaded already is passed over.

    Days load beside each other and beside ingest; a run that is killed loses nothing. The metadata of a day is the
    account of its file by the lake's own records, over all attempts.
    """
    settings, mapping = karmalake.settings, config.mapping()
    files = config.files(list(context.partition_keys))
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
