"""History by day: files that go into the lake without the bus, each day a run of its own."""

from pathlib import Path

import dagster as dg

from assets.partitions import DAYS
from assets.resources import Karmalake
from pipelines.backfill import backfill
from pipelines.contract.times import TimeUnit
from pipelines.emit.files import Mapping
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import COUNTS


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


@dg.asset(group_name="lake", kinds={"parquet", "deltalake"}, partitions_def=DAYS)
def history(
    context: dg.AssetExecutionContext, config: HistoryFiles, karmalake: dg.ResourceParam[Karmalake]
) -> dg.MaterializeResult:
    """A file of history for each day, without the bus: what is loaded already is passed over.

    Days load beside each other and beside ingest; a run that is killed loses nothing.
    """
    path = Path(config.path.format(day=context.partition_key))
    records: list[CommitRecord] = []
    backfill(karmalake.settings, path, config.mapping(), records.append)
    counts = {count: sum(record.total(count) for record in records) for count in COUNTS}
    return dg.MaterializeResult(
        metadata={"dagster/row_count": counts["accepted"], "file": dg.MetadataValue.path(path), **counts}
    )
