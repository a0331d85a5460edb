"""The commit of a batch: its files, checkpoints and record become visible together or not at all (`atomic`).

The checkpoints are application transactions of the commit (`checkpoints.py`). The handle that commits must be the
handle that the checkpoints were read from: the log fences only against that version (`fenced`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

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
from pipelines.ingest.batch import OffsetRange
from pipelines.lake.checkpoints import checkpoint, checkpoint_transactions
from pipelines.lake.commit_log import commit_rows
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import make_durable
from pipelines.lake.lake_format import require_known_format
from pipelines.lake.table_files import write_rows
from pipelines.lake.tables import COMMIT_METADATA, Lake, discard_uncommitted


@dataclass(frozen=True, slots=True)
class WithdrawnEvents:
    """How many events of one topic a withdrawal removed of an earlier batch."""

    batch_id: str
    topic_id: str
    events: int


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The record of a commit of `events`; `version` is the version that it created, -1 before the commit."""

    batch_id: str
    source: str
    started: datetime
    ranges: tuple[OffsetRange, ...]
    mis_keyed: int = 0
    first_event_time: datetime | None = None
    last_event_time: datetime | None = None
    days: tuple[date, ...] = ()
    note: str | None = None
    withdrawn: tuple[WithdrawnEvents, ...] = ()
    committed: datetime | None = None
    version: int = -1

    def total(self, count: str) -> int:
        """Return the sum of one of COUNTS over all ranges."""
        return sum(getattr(offsets, count) for offsets in self.ranges)


class ConcurrentCommitError(DeltaError):
    """Another commit to `events` came first: deduplicate the batch on the newest version, then commit again."""


def describe_events(events: pa.Table) -> dict[str, Any]:
    """Return the fields of a CommitRecord that describe the events it adds (at least the column event_time)."""
    if not len(events):
        return {"first_event_time": None, "last_event_time": None, "days": ()}
    bounds = pc.min_max(events["event_time"]).as_py()
    days = pc.unique(events["event_time"].cast(pa.date32())).to_pylist()
    return {"first_event_time": bounds["min"], "last_event_time": bounds["max"], "days": tuple(sorted(days))}


def commit_batch(lake: Lake, events: DeltaTable, files: Sequence[AddAction], record: CommitRecord) -> CommitRecord:
    """Commit a batch on the version of the handle `events`; return its record with version and commit time.

    A crash before the commit leaves orphan files; after it, a batch whose record `complete_commits` appends later.
    Raises ConcurrentCommitError when another commit came first, FencedError when that commit moved one of this batch's
    checkpoints or a range does not begin at its checkpoint, NewerFormatError when that commit upgraded the lake,
    TransientError when the commit could not be written, and CommitUnknownError when the log cannot be read to find the
    outcome.
    """
    require_known_format(events)  # an upgrade explains more than the checkpoints that moved after it
    record = replace(record, committed=datetime.now(UTC))
    expected = _checkpoints(events, record)
    base = events.version()
    if any(at not in {None, r.start_offset} for at, r in zip(expected, record.ranges, strict=True)):
        raise FencedError(
            f"{_format_ranges(record)} does not begin at the checkpoints of lake version {base}, which are {expected}: "
            "nothing of this batch was committed; start again to read from there"
        )
    try:
        commit_actions(events, files, checkpoint_transactions(events, record.ranges), record_metadata(record))
    except (DeltaError, OSError) as error:
        landed = _find_version(lake, events, base, record.batch_id, error)
        if landed is None:
            require_known_format(events)
        if landed is None and _checkpoints(events, record) != expected:
            raise FencedError(
                f"another ingester has moved the checkpoint of {_format_ranges(record)} while this one was reading: "
                "nothing of this batch was committed; stop one of the two"
            ) from error
        if landed is None and events.version() > base:
            raise ConcurrentCommitError(str(error)) from error
        if landed is None:
            raise TransientError(
                f"the commit of {_format_ranges(record)} to {lake.folder('events')} failed: {one_line(error)}; "
                "nothing of this batch was committed: check the disk or the object store and the permissions, "
                "then start again"
            ) from error
    else:
        landed = base + 1
        events.update_incremental()
    make_durable([lake.entry_path("events", landed)])
    return replace(record, version=landed)


def stage_events(table: DeltaTable, events: pa.Table, batch_id: str) -> list[AddAction]:
    """Write the events of a batch (EVENT and POSITION columns) as durable files of `events`, not yet committed."""
    return write_rows(table, _with_batch_id(events, batch_id), batch_id)


def append(lake: Lake, name: str, rows: pa.Table, batch_id: str) -> None:
    """Append rows of a batch to `dead_letters` or `conflicts`, durably. They count once the batch is committed."""
    if len(rows):
        append_file(lake, name, _with_batch_id(rows, batch_id), batch_id)


def append_file(lake: Lake, name: str, rows: pa.Table, file_name: str) -> None:
    """Append rows to a table other than `events`, durably, as one file.

    A concurrent commit makes it try again on the newest version. Raises TransientError when the commit fails without
    one. A crash leaves at most an orphan file.
    """
    table = lake.table(name)
    actions = write_rows(table, rows, file_name)
    while True:
        base = table.version()
        try:
            commit_actions(table, actions, {})
        except CommitFailedError as error:
            table.update_incremental()
            if table.version() > base:
                continue
            discard_uncommitted(lake, name, actions)
            raise TransientError(f"{lake.folder(name)} cannot be committed to: {one_line(error)}; try again") from error
        break
    make_durable([lake.entry_path(name, table.version() + 1)])


def _with_batch_id(rows: pa.Table, batch_id: str) -> pa.Table:
    return rows.append_column("batch_id", pa.repeat(pa.scalar(batch_id), len(rows)))


def record_metadata(record: CommitRecord) -> dict[str, str]:
    """Return the metadata with which the entry of a commit holds its record."""
    ranges = tuple(replace(offsets, last=None) for offsets in record.ranges)  # the transactions hold it
    return {COMMIT_METADATA: json.dumps(asdict(replace(record, ranges=ranges)), default=str)}


def _find_version(lake: Lake, events: DeltaTable, base: int, batch_id: str, error: Exception) -> int | None:
    """Return the version of a batch whose commit seemed to fail, if the log has it after all."""
    try:
        events.update_incremental()
        for version, actions in lake.read_log(base, events.version()):
            if any(record["batch_id"] == batch_id for record in commit_rows(version, actions)):
                return version
    except (DeltaError, OSError, LookupError) as unreadable:
        raise CommitUnknownError(
            f"batch {batch_id} may or may not be committed ({one_line(error)}; then {one_line(unreadable)}): "
            "start again; the checkpoint in the lake shows whether it is"
        ) from unreadable
    return None


def _checkpoints(events: DeltaTable, record: CommitRecord) -> list[int | None]:
    """Return the next_offset of the topic partition of each range at a handle's version; None if never read."""
    return [checkpoint(events, r.topic_id, r.topic_partition) for r in record.ranges]


def _format_ranges(record: CommitRecord) -> str:
    return ", ".join(map(str, record.ranges))
