"""File compaction and vacuum: fewer, sorted files, and no orphans. Changes no row.

Compaction is ours because the library commits a stale one without complaint and doubles rows: here every compaction
carries the application transaction `maintenance` and commits on exactly the version it read, so of two at once the
later one fails and starts again (`atomic`). Ingest beside it goes on: it retries its commit on the newer version.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import TransientError
from pipelines.lake.files import DAY_COLUMN, make_durable, read_file, write_days, write_file
from pipelines.lake.publish import publish
from pipelines.lake.tables import TABLES, Lake

_MAINTENANCE = "maintenance"
_ATTEMPTS = 20
_MOST_TIMES = 4
"""A file this much larger than all smaller ones of its day together is left alone."""
# One user's events side by side, in the order that scores are computed in.
_SORT_KEYS = [("user_id", "ascending"), ("event_time", "ascending"), ("event_id", "ascending")]


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

    A crash leaves orphan files. Raises TransientError when others kept committing through all attempts.
    """
    done = [_compact_table(lake, name, min_files, progress) for name in TABLES]
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
    for group in _crowded(lake.table(name), min_files):
        progress(f"{name} {group[0].get(DAY_COLUMN) or ''}".strip())
        if merged := _merge_files(lake, name, group):
            days, files_before = days + 1, files_before + len(group)
            files_after, rows = files_after + 1, rows + merged
    return Compacted(name, days, files_before, files_after, rows)


def _crowded(table: DeltaTable, min_files: int) -> list[list[dict[str, Any]]]:
    """Return the small files of each day, or of the whole table, where there are at least `min_files`, oldest first."""
    files = [_describe(row) for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()]
    files.sort(key=lambda file: (file[DAY_COLUMN], file["size"], file["path"]))
    groups = [_small(list(group)) for _, group in groupby(files, key=lambda file: file[DAY_COLUMN])]
    return [group for group in groups if len(group) >= min_files]


def _small(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the smallest files, without those that are large beside all smaller ones together.

    So an event is written again about once for each time that its day has grown by a constant factor, however often
    compaction runs.
    """
    total = sum(file["size"] for file in files)
    for end in range(len(files), 0, -1):
        largest = files[end - 1]["size"]
        total -= largest
        if largest <= _MOST_TIMES * total:
            return files[:end]
    return []


def _describe(row: dict[str, Any]) -> dict[str, Any]:
    day = row.get(f"partition.{DAY_COLUMN}")
    return {"path": str(row["path"]), DAY_COLUMN: "" if day is None else str(day), "size": int(row["size_bytes"])}


def _merge_files(lake: Lake, name: str, group: list[dict[str, Any]]) -> int:
    """Replace the files of `group` by one, unless somebody else has replaced them already; return its rows."""
    root = lake.root / name
    paths = {file["path"] for file in group}
    rows = pa.concat_tables(read_file(root / path) for path in sorted(paths))
    if name == "events":
        added = write_days(root, rows.sort_by(_SORT_KEYS), uuid4().hex, data_change=False)
    else:
        added = write_file(root, rows, uuid4().hex, data_change=False)
    for _ in range(_ATTEMPTS):
        table = lake.table(name)
        if not paths <= {str(row["path"]) for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()}:
            return 0
        try:
            _replace(table, group, added)
        except CommitFailedError:
            continue
        make_durable([root / "_delta_log" / f"{table.version() + 1:020}.json"])
        return len(rows)
    raise TransientError(
        f"others kept committing to {root}, so the compaction of {len(group)} of its files was given up: no row has "
        "changed; run it again"
    )


def _replace(table: DeltaTable, group: list[dict[str, Any]], added: list[AddAction]) -> None:
    now = int(time.time() * 1000)
    removed = [
        RemoveAction(
            file["path"], data_change=False, deletion_timestamp=now, partition_values=dict(action.partition_values)
        )
        for action in added
        for file in group
    ]
    publish(table, [*removed, *added], {_MAINTENANCE: table.version() + 1})
