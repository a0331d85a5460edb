"""The lake: what came in, what was rejected, and the upkeep of its files."""

import dagster as dg
import duckdb

from assets.resources import Karmalake
from pipelines.drain import drain, open_ingest
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import COUNTS, create_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.reputation.lake_views import create_lake_views

POOL = "lake"
"""Of runs that write, one at a time."""
_REASONS = "SELECT reason, count(*) AS records FROM dead_letters GROUP BY reason ORDER BY records DESC, reason"


class Drain(dg.Config):
    """How much one run takes from the bus: what is left, the next run takes."""

    max_batches: int = 100


@dg.asset(group_name="lake", kinds={"kafka", "deltalake"}, pool=POOL)
def events(config: Drain, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Every event that the bus holds, each once: drains what lies behind, in whole commits.

    A run that is killed loses nothing: the next one goes on from the last commit.
    """
    records: list[CommitRecord] = []
    with open_ingest(karmalake.settings) as ingest:
        drain(ingest, records.append, config.max_batches)
        behind = ingest.source.behind()
        version = ingest.events.version()
        rows = ingest.events.count()
    counts = {count: sum(record.total(count) for record in records) for count in COUNTS}
    metadata = {
        "dagster/row_count": rows,
        "commits": len(records),
        "lake_version": version,
        "lag_records": behind,
        **counts,
    }
    return dg.MaterializeResult(metadata=metadata)


@dg.asset(group_name="lake", kinds={"deltalake"}, deps=[events])
def dead_letters(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Records that are no events, with their bytes, place and reason."""
    with duckdb.connect() as connection:
        create_lake_views(connection, karmalake.snapshot())
        reasons: list[tuple[str, int]] = connection.execute(_REASONS).fetchall()
    rows = [dg.TableRecord({"reason": reason, "records": records}) for reason, records in reasons]
    total = sum(records for _, records in reasons)
    by_reason = dg.TableMetadataValue(
        rows, dg.TableSchema([dg.TableColumn("reason", "string"), dg.TableColumn("records", "int")])
    )
    return dg.MaterializeResult(metadata={"dagster/row_count": total, "by_reason": by_reason})


@dg.asset(group_name="upkeep", kinds={"deltalake"}, deps=[events], pool=POOL)
def compacted_files(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """The lake in few files, sorted by user, and without orphans. Changes no row."""
    settings = karmalake.settings
    lake = create_lake(settings.lake_root)
    done = compact(lake, settings.lake.compact_after_files)
    removed = vacuum(lake, settings.lake.vacuum_retention_hours)
    files = {
        "files_merged": sum(table.files_before for table in done),
        "files_written": sum(table.files_after for table in done),
        "files_removed": len(removed),
    }
    return dg.MaterializeResult(metadata=files)
