"""File compaction and vacuum: fewer, sorted files, and no orphans. No row changes.

The library's own compaction is not used: it commits on a stale version without an error, and doubles rows. Here every
compaction carries the application transaction `maintenance` and commits on exactly the version that it read, so of two
concurrent ones the later fails and starts again (`atomic`). Concurrent ingest retries its commit on the newer version.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import CorruptionError, TransientError
from pipelines.lake.commit_lock import commit_lock
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import DAY_COLUMN, make_durable, read_footer
from pipelines.lake.lake_format import has_mixed_files, name_replaced_files
from pipelines.lake.log_files import remove_old_entries
from pipelines.lake.merge_groups import find_groups
from pipelines.lake.table_files import File, list_files, write_rows
from pipelines.lake.tables import TABLES, Lake, discard_uncommitted, read_rows
from pipelines.settings import LakeSettings

_T = TypeVar("_T")
MAINTENANCE = "maintenance"
"""The application transaction of every commit that replaces files: of two concurrent ones the later fails."""
_ATTEMPTS = 20
MAX_MERGE_ROWS, MAX_MERGE_BYTES = 500_000, 128 * 1024 * 1024
"""The limit of one merge, in rows and in uncompressed bytes: it bounds the memory of a compaction, however large a day
is."""
# Within a file, the events of one user are adjacent, in the order in which scores are computed.
_SORT_KEYS = [("user_id", "ascending"), ("event_time", "ascending"), ("event_id", "ascending")]


@dataclass(frozen=True, slots=True)
class CompactionResult:
    """What one compaction of a table did."""

    table: str
    files_before: int
    files_after: int
    rows: int


def compact(lake: Lake, min_files: int, progress: Callable[[str], None] = lambda _: None) -> list[CompactionResult]:
    """Merge the files of each table that belong together (`merge_groups.py`), where there are at least `min_files`.

    Also removes old entries of the tables' logs. Calls `progress` with the table and the first day before each merge.
    A crash leaves orphan files. Raises TransientError when other processes kept committing through all attempts.
    """
    done: list[CompactionResult] = []
    for name in TABLES:
        table = lake.table(name)
        done.append(_compact_table(lake, name, table, min_files, progress))
        remove_old_entries(table)
    return [compacted for compacted in done if compacted.files_before]


def count_candidates(lake: Lake, min_files: int) -> int:
    """Return how many files of `events` a compaction would merge."""
    return sum(map(len, _find_candidates(lake.table("events"), min_files)))


def vacuum(lake: Lake, retention_hours: float) -> list[str]:
    """Delete files that no version younger than `retention_hours` names, including orphans; return their paths.

    The settings refuse less than an hour: a commit in progress still needs its files.
    """
    removed: list[str] = []
    hours = ceil(retention_hours)
    for name in TABLES:
        table = name_replaced_files(partial(lake.table, name), hours)
        paths = table.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=True)
        removed += [f"{name}/{path}" for path in paths]
    return removed


def vacuum_when_due(
    lake: Lake, settings: LakeSettings, mark: Path, before: Callable[[], object] = lambda: None
) -> list[str]:
    """Vacuum if `vacuum_interval_hours` have passed since the file `mark` was touched, and touch it.

    before: called first, if so.
    """
    age_hours = (time.time() - mark.stat().st_mtime) / 3600 if mark.exists() else inf
    if 0 <= age_hours < settings.vacuum_interval_hours:
        return []
    before()
    removed = vacuum(lake, settings.vacuum_retention_hours)
    make_private_dir(mark.parent)
    mark.touch()
    return removed


def _compact_table(
    lake: Lake, name: str, table: DeltaTable, min_files: int, progress: Callable[[str], None]
) -> CompactionResult:
    files_before = files_after = rows = 0
    columns = set[str]() if has_mixed_files(table) else set(TABLES[name].names) - {DAY_COLUMN}
    groups = _find_candidates(table, min_files)
    merges = (merge for group in groups for merge in _fit_merges(lake.folder(name), group, columns))
    # Several in one commit: a commit for each day would cost more than the merging.
    for packed in _pack(merges, lambda files: sum(file.merge_share for file in files)):
        files = [file for merge in packed for file in merge]
        progress(f"{name} {files[0].first_day or ''}".strip())
        if added := _merge_files(lake, name, files):
            files_before, files_after = files_before + len(files), files_after + len(added)
            rows += sum(file.rows for file in files)
    return CompactionResult(name, files_before, files_after, rows)


def _fit_merges(folder: str, group: list[File], columns: AbstractSet[str]) -> Iterator[list[File]]:
    """Yield the files of a group that are merged into one piece, with rows and `merge_share`.

    A file that takes more than half of a merge is left out. columns: those that each file must have.
    """
    measured = (_measure(folder, file, columns) for file in group)
    merges = _pack((file for file in measured if file.merge_share <= 1 / 2), lambda file: file.merge_share)
    yield from (files for files in merges if len(files) > 1)


def _measure(folder: str, file: File, columns: AbstractSet[str]) -> File:
    """Return a file with its rows and `merge_share`.

    Raises CorruptionError if it has another number of rows than the log says, or lacks columns: a file may have no
    checksum, and a merge would write nulls in their place.
    """
    footer = read_footer(f"{folder}/{file.path}")
    missing = columns - set(footer.schema.to_arrow_schema().names)
    if missing or footer.num_rows != (file.rows or footer.num_rows):
        lacks = f" and no {', '.join(sorted(missing))}" if missing else ""
        raise CorruptionError(
            f"{folder}/{file.path} is damaged (it has {footer.num_rows} of {file.rows} rows{lacks}): restore this file "
            "from a copy of the lake"
        )
    size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    share = max(footer.num_rows / MAX_MERGE_ROWS, size / MAX_MERGE_BYTES)
    return replace(file, rows=footer.num_rows, merge_share=share)


def _pack(items: Iterable[_T], share: Callable[[_T], float]) -> Iterator[list[_T]]:
    """Yield items, in order, in lists that fit into one merge."""
    packed: list[_T] = []
    used = 0.0
    for item in items:
        if packed and used + share(item) > 1:
            yield packed
            packed, used = [], 0.0
        packed.append(item)
        used += share(item)
    if packed:
        yield packed


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
            partition_values=file.partition_values,
        )
        for file in files
    ]
    commit_actions(table, [*removed, *added], {MAINTENANCE: table.version() + 1} | marks, metadata)


def _find_candidates(table: DeltaTable, min_files: int) -> list[list[File]]:
    """Return the groups of files that have enough of them to be merged, without files that are large already."""
    growing = [file for file in list_files(table) if file.rows < MAX_MERGE_ROWS / 2 and file.size < MAX_MERGE_BYTES / 2]
    return find_groups(growing, min_files)


def _merge_files(lake: Lake, name: str, files: list[File]) -> list[AddAction]:
    """Replace files by merged ones; return those, none if another process has replaced one of the files already."""
    folder = lake.folder(name)
    paths = {file.path for file in files}
    tables = (read_rows(name, f"{folder}/{path}") for path in sorted(paths))
    rows = pa.concat_tables(tables, promote_options="default")  # other engines may have added columns
    if name == "events":
        rows = rows.sort_by(_SORT_KEYS)
    added = write_rows(lake.table(name), rows, uuid4().hex, data_change=False)
    with commit_lock(folder) as lock:
        for _ in range(_ATTEMPTS):
            lock.wait()
            table = lake.table(name)
            if not paths <= {file.path for file in list_files(table)}:
                discard_uncommitted(lake, name, added)
                return []
            try:
                replace_files(table, files, added, {}, data_change=False)
            except CommitFailedError:
                lock.acquire()
                continue
            make_durable([lake.entry_path(name, table.version() + 1)])
            return added
    discard_uncommitted(lake, name, added)
    raise TransientError(
        f"other writers kept committing to {folder}, so compacting {len(files)} of its files was given up: no row "
        "changed; run it again"
    )
