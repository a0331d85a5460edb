"""File compaction and vacuum: fewer, sorted files, and no orphans. Changes no row.

Compaction is ours because the library commits a stale one without complaint and doubles rows: here every compaction
carries the application transaction `maintenance` and commits on exactly the version it read, so of two at once the
later one fails and starts again (`atomic`). Ingest beside it goes on: it retries its commit on the newer version.
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

from pipelines.boundary.private_files import private_folder
from pipelines.errors import TransientError
from pipelines.lake.files import DAY_COLUMN, make_durable, read_file, read_footer, write_days, write_file
from pipelines.lake.log_files import remove_old_entries
from pipelines.lake.publish import publish
from pipelines.lake.tables import TABLES, Lake, discard_unnamed
from pipelines.lake.turns import turns
from pipelines.settings import LakeSettings

MAINTENANCE = "maintenance"
"""The application transaction of whoever replaces files: of two at once, the later one fails."""
_ATTEMPTS = 20
_MOST_TIMES = 4
"""A file this much larger than all smaller ones of its day together is left alone."""
MERGED_ROWS, MERGED_BYTES = 500_000, 128 * 1024 * 1024
"""What is merged at a time at most, before compression: it bounds the memory of a compaction, whatever a day holds."""
# Within a day one user's events side by side, in the order that scores are computed in.
_SORT_KEYS = [
    (DAY_COLUMN, "ascending"),
    ("user_id", "ascending"),
    ("event_time", "ascending"),
    ("event_id", "ascending"),
]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a table: its path in the table's folder, its UTC day (empty in a table without), bytes and rows."""

    path: str
    day: str
    size: int
    rows: int
    share: float = 0.0
    """Of what may be merged at a time, once it is known."""


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


def vacuum_when_due(lake: Lake, settings: LakeSettings, mark: Path) -> list[str]:
    """Vacuum if `vacuum_interval_hours` have passed since the file `mark` was touched, and touch it."""
    age_hours = (time.time() - mark.stat().st_mtime) / 3600 if mark.exists() else inf
    if 0 <= age_hours < settings.vacuum_interval_hours:
        return []
    removed = vacuum(lake, settings.vacuum_retention_hours)
    private_folder(mark.parent)
    mark.touch()
    return removed


def _compact_table(lake: Lake, name: str, min_files: int, progress: Callable[[str], None]) -> Compacted:
    days = files_before = files_after = rows = 0
    crowded = (_affordable(lake.folder(name), group) for group in _crowded(lake.table(name), min_files))
    for groups in _shares([group for group in crowded if len(group) > 1]):
        progress(f"{name} {groups[0][0].day}".strip())
        files = [file for group in groups for file in group]
        if merged := _merge_files(lake, name, files):
            days, files_before = days + len(groups), files_before + len(files)
            files_after, rows = files_after + len(groups), rows + merged
    return Compacted(name, days, files_before, files_after, rows)


def _shares(groups: list[list[File]]) -> Iterator[list[list[File]]]:
    """Yield as many days at a time as may be merged: a commit for each would cost more than the merging."""
    shares = accumulate(sum(file.share for file in group) for group in groups)
    together = groupby(zip(shares, groups, strict=True), key=lambda pair: int(pair[0]))
    yield from ([group for _, group in some] for _, some in together)


def _affordable(folder: str, files: list[File]) -> list[File]:
    """Return the first of a day's small files that may be merged at a time, with their share of that."""
    measured: list[File] = []
    left = 1.0
    for file in files:
        footer = read_footer(f"{folder}/{file.path}")
        size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
        share = max(footer.num_rows / MERGED_ROWS, size / MERGED_BYTES)
        left -= share
        if left < 0:
            break
        measured.append(replace(file, share=share))
    return measured


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
    growing = [file for file in list_files(table) if file.rows < MERGED_ROWS / 2 and file.size < MERGED_BYTES / 2]
    groups = [_small(list(group)) for _, group in groupby(growing, key=lambda file: file.day)]
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
    rows = int(row.get("num_records") or 0)  # unknown of files that other engines wrote
    return File(str(row["path"]), "" if day is None else str(day), int(row["size_bytes"]), rows)


def _merge_files(lake: Lake, name: str, files: list[File]) -> int:
    """Replace files by one for each day, unless somebody else has replaced one of them already; return the rows."""
    folder = lake.folder(name)
    paths = {file.path for file in files}
    rows = pa.concat_tables(read_file(f"{folder}/{path}") for path in sorted(paths))
    if name == "events":
        added = write_days(folder, _sorted(rows), uuid4().hex, data_change=False)
    else:
        added = write_file(folder, rows, uuid4().hex, data_change=False)
    with turns(folder) as turn:
        for _ in range(_ATTEMPTS):
            turn.wait()
            table = lake.table(name)
            if not paths <= {file.path for file in list_files(table)}:
                discard_unnamed(lake, name, added)
                return 0
            try:
                replace_files(table, files, added, {}, data_change=False)
            except CommitFailedError:
                turn.take()
                continue
            make_durable([lake.entry(name, table.version() + 1)])
            return len(rows)
    discard_unnamed(lake, name, added)
    raise TransientError(
        f"others kept committing to {folder}, so the compaction of {len(files)} of its files was given up: no row has "
        "changed; run it again"
    )


def _sorted(events: pa.Table) -> pa.Table:
    days = events["event_time"].cast(pa.date32())
    return events.append_column(DAY_COLUMN, days).sort_by(_SORT_KEYS).drop_columns(DAY_COLUMN)
