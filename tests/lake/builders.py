"""Builders of small events and commits, and readers of what a lake then holds, for the tests of the lake."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from os import PathLike

import pyarrow as pa
from deltalake import DeltaTable
from pyarrow import fs

from pipelines.contract.schema import EVENT, POSITION
from pipelines.ingest.batch import OffsetRange
from pipelines.lake.commit import CommitRecord, commit_batch, describe_events, stage_events
from pipelines.lake.stores import read_text, resolve_store
from pipelines.lake.tables import TABLES, Lake, create_lake, data_files

START = datetime(2026, 3, 1, tzinfo=UTC)
TOPIC_ID = "topic-id"
_EVENTS = pa.schema([*EVENT, *POSITION])


def create_older_lake(root: str | PathLike[str]) -> Lake:
    """Create a lake whose `events` are partitioned by day, as releases before format 3 of the lake did, and open it."""
    DeltaTable.create(
        f"{root}/events",
        TABLES["events"],
        partition_by=["event_day"],
        configuration={"delta.dataSkippingNumIndexedCols": "0", "karmalake.format": "2"},
        raise_if_key_not_exists=False,
    )
    return create_lake(root)


def make_events(ids: Iterable[str], *, first_offset: int = 0, partition: int = 0, payload: str = "p") -> pa.Table:
    """Return one event for each id (EVENT and POSITION columns), an hour apart, of five users."""
    rows = [
        {
            "event_id": event_id,
            "user_id": f"u-{(first_offset + n) % 5}",
            "action_type": payload,
            "event_time": START + timedelta(hours=first_offset + n),
            "metadata": [("n", event_id)],
            "topic_id": TOPIC_ID,
            "topic": "events",
            "topic_partition": partition,
            "offset": first_offset + n,
            "bus_time": START,
        }
        for n, event_id in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows, _EVENTS)


def make_record(batch_id: str, events: pa.Table, *, partition: int = 0, start: int = 0) -> CommitRecord:
    """Return the record of a batch that read and accepted `events` from offset `start` on."""
    count = len(events)
    fates = dict.fromkeys(("read", "converted", "made", "accepted"), count)
    offsets = OffsetRange(TOPIC_ID, "events", partition, start, start + count, **fates)
    return CommitRecord(batch_id, "test", datetime.now(UTC), (offsets,), **describe_events(events))


def commit(lake: Lake, handle: DeltaTable, batch_id: str, events: pa.Table, *, partition: int = 0) -> CommitRecord:
    """Stage and commit `events` from the checkpoint of the handle on."""
    start = handle.transaction_version(f"ingest:{TOPIC_ID}:{partition}") or 0
    record = make_record(batch_id, events, partition=partition, start=start)
    return commit_batch(lake, handle, stage_events(handle, events, batch_id), record)


def read_rows(lake: Lake, name: str = "events") -> list[dict[str, object]]:
    """Return the rows of a table's newest version without `event_day`, in an order independent of its files."""
    table = lake.table(name).to_pyarrow_table()
    columns = [column for column in table.schema.names if column != "event_day"]
    return sorted(table.select(columns).to_pylist(), key=repr)


def as_json(record: CommitRecord) -> str:
    """Return a record as the log of `events` holds it."""
    return json.dumps(asdict(record), default=str)


def orphan_files(lake: Lake) -> list[str]:
    """Return the files of all tables that no version names; files that a later version replaced are not orphans."""
    orphans: set[str] = set()
    for name in TABLES:
        table = lake.table(name)
        replaced = {path for version in range(1, table.version() + 1) for path in _replaced(lake, name, version)}
        orphans |= _parquet_files(lake.folder(name)) - set(data_files(table)) - replaced
    return sorted(orphans)


def _parquet_files(folder: str) -> set[str]:
    store, path = resolve_store(folder)
    found = store.get_file_info(fs.FileSelector(path, recursive=True))
    names = [one.path.removeprefix(path) for one in found if one.path.endswith(".parquet")]
    return {f"{folder}{name}" for name in names if "/_delta_log/" not in name}


def _replaced(lake: Lake, name: str, version: int) -> list[str]:
    actions = map(json.loads, read_text(lake.entry_path(name, version)).splitlines())
    return [f"{lake.folder(name)}/{action['remove']['path']}" for action in actions if "remove" in action]
