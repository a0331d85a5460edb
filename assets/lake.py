"""The assets of the lake: events, their days, and dead letters."""

from datetime import timedelta

import dagster as dg

from assets.failures import RETRIES, explain_failures
from assets.partitions import DAYS
from assets.resources import NO_CONFIG, Karmalake
from pipelines.boundary.database import connect
from pipelines.drain import drain, open_drain
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import COUNTS, EVENTS, table_id
from pipelines.reputation.column_help import describe_column
from pipelines.reputation.lake_views import create_lake_views

POOL = "lake"
"""The pool of runs that write; one runs at a time."""
_FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26), warn_window=timedelta(hours=2))
"""Relative to the last drain or commit; the sensor `commits` reports those of `karmalake stream`. A topic may be quiet
at night."""
_REASONS = "SELECT reason, count(*) AS records FROM dead_letters GROUP BY reason ORDER BY records DESC, reason"


class DrainConfig(dg.Config):
    """How much one run reads from the bus; the next run reads the rest."""

    max_batches: int = 100


EVENT_COLUMNS = dg.TableSchema(
    [dg.TableColumn(field.name, str(field.type), describe_column("lake", "events", field.name)) for field in EVENTS]
)
"""The columns of `events`, for Dagster's page."""


@dg.asset(
    group_name="lake",
    kinds={"kafka", "deltalake"},
    pool=POOL,
    retry_policy=RETRIES,
    freshness_policy=_FRESH,
    metadata={"dagster/column_schema": EVENT_COLUMNS},
)
@explain_failures
def events(config: DrainConfig, karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Every event on the bus, exactly once: reads the remaining records, in whole commits.

    A killed run loses nothing: the next one continues from the last commit.
    """
    records: list[CommitRecord] = []
    with open_drain(karmalake.settings) as ingest:
        drain(ingest, records.append, config.max_batches)
        remaining = ingest.source.remaining_records()
        version, lake_id = ingest.events.version(), table_id(ingest.events)
        rows = ingest.events.count()
    counts = {count: sum(record.total(count) for record in records) for count in COUNTS}
    metadata = {
        "dagster/row_count": rows,
        "commits": len(records),
        "lake_version": version,
        "lake_id": lake_id,
        "lag_records": remaining,
        **counts,
    }
    return dg.MaterializeResult(metadata=metadata)


event_days = dg.AssetSpec(
    "event_days",
    group_name="lake",
    kinds={"deltalake"},
    partitions_def=DAYS,
    deps=[events, "history"],
    description="The days of the lake: a day is reported whenever a commit adds events to it, however late. Nothing "
    "is computed here; the sensor `updated_days` reads the commit records.",
)


@dg.asset(group_name="lake", kinds={"deltalake"}, deps=[events], config_schema=NO_CONFIG)
@explain_failures
def dead_letters(karmalake: dg.ResourceParam[Karmalake]) -> dg.MaterializeResult:
    """Rejected records, with their bytes, offset and reason."""
    with connect() as connection:
        create_lake_views(connection, karmalake.snapshot())
        reasons: list[tuple[str, int]] = connection.execute(_REASONS).fetchall()
    rows = [dg.TableRecord({"reason": reason, "records": records}) for reason, records in reasons]
    total = sum(records for _, records in reasons)
    by_reason = dg.TableMetadataValue(
        rows, dg.TableSchema([dg.TableColumn("reason", "string"), dg.TableColumn("records", "int")])
    )
    return dg.MaterializeResult(metadata={"dagster/row_count": total, "by_reason": by_reason})
