"""The commit: files, checkpoints and the record of a batch, published together or not at all.

It carries the checkpoints, as application transactions (`positions.py`). A handle that commits must be
the very handle the checkpoint was read from: only against that version does the log fence (`fenced`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction

from pipelines.errors import CommitUnknownError, FencedError, TransientError, one_line
from pipelines.ingest.ranges import OffsetRange
from pipelines.lake.files import make_durable, write_days, write_file
from pipelines.lake.history import recorded
from pipelines.lake.positions import positions
from pipelines.lake.publish import publish
from pipelines.lake.tables import COMMIT_METADATA, Lake, checkpoint_id, discard_unnamed


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The record of a commit of `events`; `version` is the table version that it made, -1 before the commit."""

    batch_id: str
    source: str
    started: datetime
    ranges: tuple[OffsetRange, ...]
    mis_keyed: int = 0
    first_event_time: datetime | None = None
    last_event_time: datetime | None = None
    days: tuple[date, ...] = ()
    note: str | None = None
    committed: datetime | None = None
    version: int = -1

    def total(self, count: str) -> int:
        """Return the sum of one of COUNTS over all ranges."""
        return sum(getattr(offsets, count) for offsets in self.ranges)


class OvertakenError(DeltaError):
    """Somebody committed to `events` since the handle was read: dedupe again, then commit again."""


def describe_events(events: pa.Table) -> dict[str, Any]:
    """Return the fields of a CommitRecord that speak of the events it adds."""
    if not len(events):
        return {"first_event_time": None, "last_event_time": None, "days": ()}
    bounds = pc.min_max(events["event_time"]).as_py()
    days = pc.unique(events["event_time"].cast(pa.date32())).to_pylist()
    return {"first_event_time": bounds["min"], "last_event_time": bounds["max"], "days": tuple(sorted(days))}


def commit_batch(lake: Lake, events: DeltaTable, files: Sequence[AddAction], record: CommitRecord) -> CommitRecord:
    """Publish a batch on the version of `events` (a handle); return its record with version and commit time.

    A crash before it leaves orphan files; after it, a batch whose commit record `complete_commits` will write.
    Raises OvertakenError when somebody else committed in between, FencedError when that was to one of our topic
    partitions or a range begins elsewhere than at the checkpoint of that version, TransientError when the commit could
    not be written, CommitUnknownError when the log cannot be read to learn the outcome.
    """
    record = replace(record, committed=datetime.now(UTC))
    expected = _checkpoints(events, record)
    base = events.version()
    if any(at not in {None, r.start_offset} for at, r in zip(expected, record.ranges, strict=True)):
        raise FencedError(
            f"{_places(record)} does not begin at the checkpoints of lake version {base}, which are {expected}: "
            "nothing of this batch was committed; start again to read on from them"
        )
    try:
        publish(events, files, positions(events, record.ranges), metadata={COMMIT_METADATA: _to_json(record)})
    except (DeltaError, OSError) as error:
        landed = _outcome(lake, events, base, record.batch_id, error)
        if landed is None and _checkpoints(events, record) != expected:
            raise FencedError(
                f"another ingester has moved the checkpoint of {_places(record)} while this one was reading: "
                "stop one of the two; nothing of this batch was committed"
            ) from error
        if landed is None and events.version() > base:
            raise OvertakenError(str(error)) from error
        if landed is None:
            raise TransientError(
                f"the commit of {_places(record)} to {lake.folder('events')} failed: {one_line(error)}; "
                "nothing of this batch was committed: check the disk or the object store and the permissions, "
                "then start again"
            ) from error
    else:
        landed = base + 1
        events.update_incremental()
    make_durable([lake.entry("events", landed)])
    return replace(record, version=landed)


def stage_events(lake: Lake, events: pa.Table, batch_id: str) -> list[AddAction]:
    """Write the events of a batch (EVENT and PLACE columns) as durable files by day that no commit names yet."""
    return write_days(lake.folder("events"), _of_batch(events, batch_id), batch_id)


def append(lake: Lake, name: str, rows: pa.Table, batch_id: str) -> None:
    """Append rows to `dead_letters` or `conflicts`, durably; they count once the batch is committed, and not before."""
    if len(rows):
        append_file(lake, name, _of_batch(rows, batch_id), batch_id)


def append_file(lake: Lake, name: str, rows: pa.Table, file_name: str) -> None:
    """Append rows to a table other than `events`, durably, as one file; a crash leaves at most an orphan file.

    Raises TransientError when the commit is refused though nobody else has committed.
    """
    actions = write_file(lake.folder(name), rows, file_name)
    table = lake.table(name)
    while True:
        base = table.version()
        try:
            publish(table, actions, {})
        except CommitFailedError as error:
            table.update_incremental()
            if table.version() > base:
                continue
            discard_unnamed(lake, name, actions)
            raise TransientError(f"{lake.folder(name)} cannot be committed to: {one_line(error)}; try again") from error
        break
    make_durable([lake.entry(name, table.version() + 1)])


def _of_batch(rows: pa.Table, batch_id: str) -> pa.Table:
    return rows.append_column("batch_id", pa.repeat(pa.scalar(batch_id), len(rows)))


def _to_json(record: CommitRecord) -> str:
    ranges = tuple(replace(offsets, last=None) for offsets in record.ranges)  # the transactions say it
    return json.dumps(asdict(replace(record, ranges=ranges)), default=str)


def _outcome(lake: Lake, events: DeltaTable, base: int, batch_id: str, error: Exception) -> int | None:
    """Learn from the log whether a batch whose commit failed, or whose answer was lost, has landed after all."""
    try:
        events.update_incremental()
        for version, actions in lake.log(base, events.version()):
            if any(record["batch_id"] == batch_id for record in recorded(version, actions)):
                return version
    except (DeltaError, OSError, LookupError) as unreadable:
        raise CommitUnknownError(
            f"batch {batch_id} may or may not be committed ({one_line(error)}; then {one_line(unreadable)}): "
            "start again, the checkpoint in the lake tells"
        ) from unreadable
    return None


def _checkpoints(events: DeltaTable, record: CommitRecord) -> list[int | None]:
    """Return the next_offset of the topic partition of each range at the version of a handle; None if never read."""
    return [events.transaction_version(checkpoint_id(r.topic_id, r.topic_partition)) for r in record.ranges]


def _places(record: CommitRecord) -> str:
    return ", ".join(map(str, record.ranges))
