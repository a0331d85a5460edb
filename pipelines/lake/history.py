"""What the log of `events` tells: the record of every commit, and the lake as of one of them.

Owns the `commits` table, which is a copy of what the log says for those who read tables. It is completed before every
snapshot and after every batch, by one and the same function, so nobody meets a commit without its record.
"""

import json
from datetime import date, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from pyarrow.dataset import dataset

from pipelines.lake.files import make_durable, write_file
from pipelines.lake.publish import publish
from pipelines.lake.tables import COMMIT_METADATA, COMMITS, COUNTS, TABLES, Lake, Snapshot, checkpoint_id

_COMPLETE_UPTO = "commits"
"""The application transaction that says up to which version of `events` the table is complete."""


def take_snapshot(lake: Lake) -> Snapshot:
    """Return the newest whole state of the lake (`atomic`): `events` first, for all that belongs to it is older."""
    events = lake.table("events")
    complete_commits(lake, events.version())
    files = {"events": tuple(events.file_uris())}
    files |= {name: tuple(lake.table(name).file_uris()) for name in TABLES if name != "events"}
    lake_id = str(events.metadata().id)
    return Snapshot(events.version(), files, _checkpoints(files["commits"], events), lake_id)


def complete_commits(lake: Lake, upto: int) -> None:
    """Append to `commits` the record of every commit of `events` up to version `upto` that is not there yet.

    The log of `events` is the truth and this table its copy for readers, so a crash between the two, or another
    ingester doing the same at the same time, changes nothing.
    """
    while True:
        commits = lake.table("commits")
        known = commits.transaction_version(_COMPLETE_UPTO)
        known = 0 if known is None else known
        if known >= upto:
            return
        rows = [row for version, actions in lake.log(known, upto) for row in recorded(version, actions)]
        actions = write_file(lake.root / "commits", pa.Table.from_pylist(rows, COMMITS), uuid4().hex) if rows else []
        try:
            publish(commits, actions, {_COMPLETE_UPTO: upto})
        except CommitFailedError:
            continue
        make_durable([lake.root / "commits" / "_delta_log" / f"{commits.version() + 1:020}.json"])
        return


def topic_ids(lake: Lake, topic: str) -> set[str]:
    """Return every id under which a topic of this name was ever read: more than one if it was created again."""
    ranges = _ranges(tuple(lake.table("commits").file_uris()))
    pairs = zip(ranges.field("topic").to_pylist(), ranges.field("topic_id").to_pylist(), strict=True)
    return {topic_id for name, topic_id in pairs if name == topic}


def recorded(version: int, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the record of a commit of `events` as a row of COMMITS; nothing for one of upkeep."""
    for action in actions:
        if COMMIT_METADATA in action.get("commitInfo", {}):
            return [_row(version, json.loads(action["commitInfo"][COMMIT_METADATA]))]
    return []


def _row(version: int, record: dict[str, Any]) -> dict[str, Any]:
    for field in ("started", "committed", "first_event_time", "last_event_time"):
        record[field] = record[field] and datetime.fromisoformat(record[field])
    record["days"] = [date.fromisoformat(day) for day in record["days"]]
    totals = {count: sum(offsets[count] for offsets in record["ranges"]) for count in COUNTS}
    return record | totals | {"version": version}


def _checkpoints(commit_files: tuple[str, ...], events: DeltaTable) -> dict[tuple[str, int], int]:
    ranges = _ranges(commit_files)
    places = set(zip(ranges.field("topic_id").to_pylist(), ranges.field("topic_partition").to_pylist(), strict=True))
    return {place: events.transaction_version(checkpoint_id(*place)) or 0 for place in places}


def _ranges(commit_files: tuple[str, ...]) -> pa.StructArray:
    stored = COMMITS.field("ranges")
    table = dataset(list(commit_files), pa.schema([stored])).to_table()
    return table.column("ranges").combine_chunks().flatten()
