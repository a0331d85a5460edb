"""File compaction and vacuum: fewer, sorted files, and no orphans. No row changes.

The library's own compaction is not used: it commits on a stale version without an error, and doubles rows. Here every
compaction carries the application transaction `maintenance` and commits on exactly the version that it read, so of two
concurrent ones the later fails and starts again (`atomic`). Concurrent ingest retries its commit on the newer version.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from math import ceil, inf
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import TransientError
from pipelines.lake.commit_lock import commit_lock
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import DAY_COLUMN, make_durable, read_footer, write_days, write_file
from pipelines.lake.log_files import remove_old_entries
from pipelines.lake.tables import TABLES, Lake, discard_uncommitted, read_rows
from pipelines.settings import LakeSettings

MAINTENANCE = "maintenance"
"""The application transaction of every commit that replaces files: of two concurrent ones the later fails."""
_ATTEMPTS = 20
_MAX_SURPLUS_FILES = 1_000
"""With this many small files beyond one per day, even two of a day are merged: history in random order leaves a few on
each day."""
_MAX_SIZE_RATIO = 4
"""A file more than this many times as large as all smaller ones of its day together is not merged."""
MAX_MERGE_ROWS, MAX_MERGE_BYTES = 500_000, 128 * 1024 * 1024
"""The limit of one merge, in rows and in uncompressed bytes: it bounds the memory of a compaction, however large a day
is."""
# Within a day, the events of one user are adjacent, in the order in which scores are computed.
_SORT_KEYS = [
    (DAY_COLUMN, "ascending"),
    ("user_id", "ascending"),
    ("event_time", "ascending"),
    ("event_id", "ascending"),
]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a table: path in the table's folder, UTC day (empty in an unpartitioned table), bytes and rows."""

    path: str
    day: str
    size: int
    rows: int
    merge_share: float = 0.0
    """Its share of the limit of one merge, once it is known."""


@dataclass(frozen=True, slots=True)
class CompactionResult:
    """What one compaction of a table did; `days` is 1 for an unpartitioned table."""

    table: str
    days: int
    files_before: int
    files_after: int
    rows: int


def compact(lake: Lake, min_files: int, progress: Callable[[str], None] = lambda _: None) -> list[CompactionResult]:
    """Merge the small files of each day of `events`, and of each other table, with at least `min_files` of them.

    With over a thousand small files beyond one per day, two of a day are enough. Also removes old entries of the
    tables' logs. Calls `progress` with the table and day before each merge. A crash leaves orphan files. Raises
    TransientError when other processes kept committing through all attempts.
    """
    done = [_compact_table(lake, name, min_files, progress) for name in TABLES]
    for name in TABLES:
        remove_old_entries(lake.table(name))
    return [compacted for compacted in done if compacted.files_before]


def vacuum(lake: Lake, retention_hours: float) -> list[str]:
    """Delete files that no version younger than `retention_hours` names, including orphans; return their paths.

    The settings refuse less than an hour: a commit in progress still needs its files.
    """
    removed: list[str] = []
    for name in TABLES:
        table = lake.table(name)
        paths = table.vacuum(
            retention_hours=ceil(retention_hours), dry_run=False, enforce_retention_duration=False, full=True
        )
        removed += [f"{name}/{path}" for path in paths]
    return removed


def vacuum_when_due(lake: Lake, settings: LakeSettings, mark: Path) -> list[str]:
    """Vacuum if `vacuum_interval_hours` have passed since the file `mark` was touched, and touch it."""
    age_hours = (time.time() - mark.stat().st_mtime) / 3600 if mark.exists() else inf
    if 0 <= age_hours < settings.vacuum_interval_hours:
        return []
    removed = vacuum(lake, settings.vacuum_retention_hours)
    make_private_dir(mark.parent)
    mark.touch()
    return removed


def _compact_table(lake: Lake, name: str, min_files: int, progress: Callable[[str], None]) -> CompactionResult:
    days = files_before = files_after = rows = 0
    candidates = (_fit_one_merge(lake.folder(name), group) for group in _find_candidates(lake.table(name), min_files))
    for groups in _pack_merges([group for group in candidates if len(group) > 1]):
        progress(f"{name} {groups[0][0].day}".strip())
        files = [file for group in groups for file in group]
        if merged := _merge_files(lake, name, files):
            days, files_before = days + len(groups), files_before + len(files)
            files_after, rows = files_after + len(groups), rows + merged
    return CompactionResult(name, days, files_before, files_after, rows)


def _pack_merges(groups: list[list[File]]) -> Iterator[list[list[File]]]:
    """Yield the days of one merge and commit at a time: a commit for each day would cost more than the merging."""
    shares = accumulate(sum(file.merge_share for file in group) for group in groups)
    packed = groupby(zip(shares, groups, strict=True), key=lambda pair: int(pair[0]))
    yield from ([group for _, group in pairs] for _, pairs in packed)


def _fit_one_merge(folder: str, files: list[File]) -> list[File]:
    """Return the first of a day's small files that fit into one merge, with their `merge_share`."""
    measured: list[File] = []
    room = 1.0
    for file in files:
        footer = read_footer(f"{folder}/{file.path}")
        size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
        share = max(footer.num_rows / MAX_MERGE_ROWS, size / MAX_MERGE_BYTES)
        room -= share
        if room < 0:
            break
        measured.append(replace(file, merge_share=share))
    return measured


def list_files(table: DeltaTable) -> list[File]:
    """Return the files of a handle's version by day, the smallest first within a day."""
    files = [_describe(row) for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()]
    return sorted(files, key=lambda file: (file.day, file.size, file.path))


def replace_files(
    table: DeltaTable,
    files: list[File],
    added: list[AddAction],
    marks: dict[str, int],
    *,
    data_change: bool,
    metadata: dict[str, str] | None = None,
) -> None:
    """Commit the replacement of `files` by `added` on exactly the handle's version.

    `marks` are further application transactions, version by app_id; `data_change` is false where the rows stay the
    same; `metadata` are further members of the entry's `commitInfo`. Raises CommitFailedError if the handle's version
    is no longer the newest.
    """
    now = int(time.time() * 1000)
    removed = [
        RemoveAction(
            file.path,
            data_change=data_change,
            deletion_timestamp=now,
            partition_values={DAY_COLUMN: file.day} if file.day else {},
        )
        for file in files
    ]
    commit_actions(table, [*removed, *added], {MAINTENANCE: table.version() + 1} | marks, metadata)


def _find_candidates(table: DeltaTable, min_files: int) -> list[list[File]]:
    """Return the small files of each day, or of an unpartitioned table, that has enough of them to be merged."""
    growing = [file for file in list_files(table) if file.rows < MAX_MERGE_ROWS / 2 and file.size < MAX_MERGE_BYTES / 2]
    groups = [_select_small(list(group)) for _, group in groupby(growing, key=lambda file: file.day)]
    surplus = sum(len(group) - 1 for group in groups if group)
    return [group for group in groups if len(group) >= (2 if surplus >= _MAX_SURPLUS_FILES else min_files)]


def _select_small(files: list[File]) -> list[File]:
    """Return the smallest files, without those much larger than all smaller ones together (`_MAX_SIZE_RATIO`).

    An event is then rewritten about once for each time that its day has grown by a constant factor, however often
    compaction runs.
    """
    total = sum(file.size for file in files)
    for end in range(len(files), 0, -1):
        largest = files[end - 1].size
        total -= largest
        if largest <= _MAX_SIZE_RATIO * total:
            return files[:end]
    return []


def _describe(row: dict[str, Any]) -> File:
    day = row.get(f"partition.{DAY_COLUMN}")
    rows = int(row.get("num_records") or 0)  # missing in files that other engines wrote
    return File(str(row["path"]), "" if day is None else str(day), int(row["size_bytes"]), rows)


def _merge_files(lake: Lake, name: str, files: list[File]) -> int:
    """Replace files by one for each day; return the rows, 0 if another process has replaced one of them already."""
    folder = lake.folder(name)
    paths = {file.path for file in files}
    tables = (read_rows(name, f"{folder}/{path}") for path in sorted(paths))
    rows = pa.concat_tables(tables, promote_options="default")  # other engines may have added columns
    if name == "events":
        added = write_days(folder, _sorted(rows), uuid4().hex, data_change=False)
    else:
        added = write_file(folder, rows, uuid4().hex, data_change=False)
    with commit_lock(folder) as lock:
        for _ in range(_ATTEMPTS):
            lock.wait()
            table = lake.table(name)
            if not paths <= {file.path for file in list_files(table)}:
                discard_uncommitted(lake, name, added)
                return 0
            try:
                replace_files(table, files, added, {}, data_change=False)
            except CommitFailedError:
                lock.acquire()
                continue
            make_durable([lake.entry_path(name, table.version() + 1)])
            return len(rows)
    discard_uncommitted(lake, name, added)
    raise TransientError(
        f"other writers kept committing to {folder}, so compacting {len(files)} of its files was given up: no row "
        "changed; run it again"
    )


def _sorted(events: pa.Table) -> pa.Table:
    days = events["event_time"].cast(pa.date32())
    return events.append_column(DAY_COLUMN, days).sort_by(_SORT_KEYS).drop_columns(DAY_COLUMN)
