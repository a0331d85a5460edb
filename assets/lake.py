"""The lake: what came in, by which days, and what was rejected."""

import dagster as dg
import duckdb

from assets.failures import RETRIES, actionable
from assets.partitions import DAYS
from assets.resources import Karmalake
from pipelines.drain import drain, open_drain
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import COUNTS, EVENTS
from pipelines.reputation.lake_views import create_lake_views

POOL = "lake"
"""Of runs that write, one at a time."""
_REASONS = "SELECT reason, count(*) AS records FROM dead_letters GROUP BY reason ORDER BY records DESC, reason"


class Drain(dg.Config):
    """How much one run takes from the bus: what is left, the next run takes."""

    max_batches: int = 100


_COLUMNS = dg.TableSchema([dg.TableColumn(field.name, str(field.type)) for field in EVENTS])


@dg.asset(
    group_name="lake",
    kinds={"kafka", "deltalake"},
    pool=POOL,
    retry_policy=RETRIES,
    metadata={"dagster/column_schema": _COLUMNS},
)
@actionable
def events(config: Drain, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Every event that the bus holds, each once: drains what lies behind, in whole commits.

    A run that is killed loses nothing: the next one goes on from the last commit.
    """
    records: list[CommitRecord] = []
    with open_drain(karmalake.settings) as ingest:
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


event_days = dg.AssetSpec(
    "event_days",
    group_name="lake",
    kinds={"deltalake"},
    partitions_def=DAYS,
    deps=[events, "history"],
    description="The days of the lake: a day is reported whenever a commit brought events of it, however late. Nothing "
    "is computed here; the sensor `touched_days` reads the record of each commit.",
)


@dg.asset(group_name="lake", kinds={"deltalake"}, deps=[events])
@actionable
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
