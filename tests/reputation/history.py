"""Histories of events for the tests: as plain values, as Arrow, and as the Parquet files of a snapshot."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.lake.tables import TABLES, Snapshot

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
DAY = 86_400_000_000
MINUTE = 60_000_000


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def at(t: int) -> datetime:
    return EPOCH + timedelta(microseconds=t)


NOW = us(AS_OF)


@dataclass(frozen=True)
class Event:
    """An event of a test; `t` is in microseconds since 1970."""

    event_id: str
    user_id: str
    action_type: str
    t: int
    metadata: dict[str, str] = field(default_factory=dict)
    batch_id: str = "batch"


def events_table(events: Iterable[Event]) -> pa.Table:
    """Return events with the columns that the lake stores, at consecutive offsets of one topic partition."""
    rows = [
        {
            "event_id": event.event_id,
            "user_id": event.user_id,
            "action_type": event.action_type,
            "event_time": event.t,
            "metadata": list(event.metadata.items()),
            "topic_id": "topic-id",
            "topic": "topic",
            "topic_partition": 0,
            "offset": offset,
            "bus_time": event.t,
            "batch_id": event.batch_id,
        }
        for offset, event in enumerate(events)
    ]
    return pa.Table.from_pylist(rows, stored_schema("events"))


def stored_schema(table: str) -> pa.Schema:
    return pa.schema([column for column in TABLES[table] if column.name != "event_day"])


def snapshot_of(folder: Path, *batches: Iterable[Event], version: int = 1, **others: pa.Table) -> Snapshot:
    """Write each batch to a Parquet file of its own, other tables to one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [("events", events_table(batch)) for batch in batches] + list(others.items())
    files: dict[str, list[str]] = {name: [] for name in TABLES}
    for number, (name, table) in enumerate(tables):
        path = folder / f"{name}-{version}-{number}.parquet"
        pq.write_table(table, path)
        files[name].append(str(path))
    return Snapshot(version, {name: tuple(paths) for name, paths in files.items()}, {"ingest:topic-id:0": 1_000_000})
