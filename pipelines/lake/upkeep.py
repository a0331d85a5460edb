"""File compaction and vacuum: fewer, sorted files, and no orphans. Changes no row.

Compaction is ours because the library commits a stale one without complaint and doubles rows: here every compaction
carries the application transaction `maintenance` and commits on exactly the version it read, so of two at once the
later one fails and starts again (`atomic`). Ingest beside it goes on: it retries its commit on the newer version.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import ceil
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import TransientError
from pipelines.lake.files import DAY_COLUMN, make_durable, read_file, write_days, write_file
from pipelines.lake.log_files import remove_old_entries
from pipelines.lake.publish import publish
from pipelines.lake.tables import TABLES, Lake

MAINTENANCE = "maintenance"
"""The application transaction of whoever replaces files: of two at once, the later one fails."""
_ATTEMPTS = 20
_MOST_TIMES = 4
"""A file this much larger than all smaller ones of its day together is left alone."""
_SHARE_BYTES = 64 * 1024 * 1024
"""Compressed, of the files that are merged at a time."""
# Within a day one user's events side by side, in the order that scores are computed in.
_SORT_KEYS = [
    (DAY_COLUMN, "ascending"),
    ("user_id", "ascending"),
    ("event_time", "ascending"),
    ("event_id", "ascending"),
]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a table: its path in the table's folder, its UTC day (empty in a table without) and its bytes."""

    path: str
    day: str
    size: int


@dataclass(frozen=True, slots=True)
class Compacted:
    """What one compaction of a table did; `days` counts partitions (1 for a table without)."""

    table: str
    days: int
    files_before: int
    files_after: int
    rows: int


def compact(lake: Lake, min_files: int, progress: Callable[[str], None] = lambda _: None) -> list[Compacted]:
    """Merge the small files of each day of `events`, and of each other table, that has at least `min_files` of them.

    Also removes old entries of the tables' logs. A crash leaves orphan files. Raises TransientError when others kept
    committing through all attempts.
    """
    done = [_compact_table(lake, name, min_files, progress) for name in TABLES]
    for name in TABLES:
        remove_old_entries(lake.table(name))
    return [compacted for compacted in done if compacted.files_before]


def vacuum(lake: Lake, retention_hours: float) -> list[str]:
    """Delete files that no version younger than `retention_hours` names, orphans of crashes included.

    Returns their paths. Under an hour is refused by the settings: a commit in flight still needs its files.
    """
    removed: list[str] = []
    for name in TABLES:
        table = lake.table(name)
        paths = table.vacuum(
            retention_hours=ceil(retention_hours), dry_run=False, enforce_retention_duration=False, full=True
        )
        removed += [f"{name}/{path}" for path in paths]
    return removed


def _compact_table(lake: Lake, name: str, min_files: int, progress: Callable[[str], None]) -> Compacted:
    days = files_before = files_after = rows = 0
    for groups in _shares(_crowded(lake.table(name), min_files)):
        progress(f"{name} {groups[0][0].day}".strip())
        files = [file for group in groups for file in group]
        if merged := _merge_files(lake, name, files):
            days, files_before = days + len(groups), files_before + len(files)
            files_after, rows = files_after + len(groups), rows + merged
    return Compacted(name, days, files_before, files_after, rows)


def _shares(groups: list[list[File]]) -> Iterator[list[list[File]]]:
    """Yield as many days at a time as fit into memory well: a commit for each would cost more than the merging."""
    sizes = accumulate(sum(file.size for file in group) for group in groups)
    shares = groupby(zip(sizes, groups, strict=True), key=lambda pair: pair[0] // _SHARE_BYTES)
    yield from ([group for _, group in share] for _, share in shares)


def list_files(table: DeltaTable) -> list[File]:
    """Return the files of a table's version, smallest first within a day."""
    files = [_describe(row) for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()]
    return sorted(files, key=lambda file: (file.day, file.size, file.path))


def replace_files(
    table: DeltaTable, files: list[File], added: list[AddAction], marks: dict[str, int], *, data_change: bool
) -> None:
    """Commit that `added` takes the place of `files`, with application transactions beside, on exactly this version.

    Raises CommitFailedError if anybody committed since the handle was read.
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
    publish(table, [*removed, *added], {MAINTENANCE: table.version() + 1} | marks)


def _crowded(table: DeltaTable, min_files: int) -> list[list[File]]:
    """Return the small files of each day, or of the whole table, where there are at least `min_files`."""
    groups = [_small(list(group)) for _, group in groupby(list_files(table), key=lambda file: file.day)]
    return [group for group in groups if len(group) >= min_files]


def _small(files: list[File]) -> list[File]:
    """Return the smallest files, without those that are large beside all smaller ones together.

    So an event is written again about once for each time that its day has grown by a constant factor, however often
    compaction runs.
    """
    total = sum(file.size for file in files)
    for end in range(len(files), 0, -1):
        largest = files[end - 1].size
        total -= largest
        if largest <= _MOST_TIMES * total:
            return files[:end]
    return []


def _describe(row: dict[str, Any]) -> File:
    day = row.get(f"partition.{DAY_COLUMN}")
    return File(str(row["path"]), "" if day is None else str(day), int(row["size_bytes"]))


def _merge_files(lake: Lake, name: str, files: list[File]) -> int:
    """Replace files by one for each day, unless somebody else has replaced one of them already; return the rows."""
    folder = lake.folder(name)
    paths = {file.path for file in files}
    rows = pa.concat_tables(read_file(f"{folder}/{path}") for path in sorted(paths))
    if name == "events":
        added = write_days(folder, _sorted(rows), uuid4().hex, data_change=False)
    else:
        added = write_file(folder, rows, uuid4().hex, data_change=False)
    for _ in range(_ATTEMPTS):
        table = lake.table(name)
        if not paths <= {str(row["path"]) for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()}:
            return 0
        try:
            replace_files(table, files, added, {}, data_change=False)
        except CommitFailedError:
            continue
        make_durable([lake.entry(name, table.version() + 1)])
        return len(rows)
    raise TransientError(
        f"others kept committing to {folder}, so the compaction of {len(files)} of its files was given up: no row has "
        "changed; run it again"
    )


def _sorted(events: pa.Table) -> pa.Table:
    days = events["event_time"].cast(pa.date32())
    return events.append_column(DAY_COLUMN, days).sort_by(_SORT_KEYS).drop_columns(DAY_COLUMN)
