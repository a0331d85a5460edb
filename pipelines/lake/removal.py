"""Removing rows from a table by one commit: files that hold such rows are replaced by files without them.

Owns what an erasure (`erasure.py`) and a withdrawal (`withdrawal.py`) share. Like a compaction, the commit is on
exactly the version that was read, so rows that arrive meanwhile are not missed. A commit of `events` names a file of
the events that it removed, from which indexes, histories and the warehouse learn (`erased_events.py`). The old files
stay readable until a vacuum.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipelines.lake.erased_events import ERASED_EVENTS, erased_events_metadata, write_erased_events
from pipelines.lake.files import make_durable, remove_files
from pipelines.lake.table_files import File, write_rows
from pipelines.lake.tables import ERASED, Lake, discard_uncommitted, read_rows
from pipelines.lake.upkeep import replace_files


class Search(Protocol):
    """How the rows to remove are found in one table."""

    def find(self, paths: Sequence[str]) -> Collection[str]:
        """Return the files that have such rows, or may have some."""
        ...

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        """Return which rows of such a file are to be removed."""
        ...


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A file that had rows to remove, what replaces it, and the rows that were removed."""

    file: File
    added: list[AddAction]
    removed: pa.Table


def removed_events(rewritten: Iterable[Rewrite]) -> pa.Table:
    """Return the rows removed from `events`, as ERASED_EVENTS."""
    removed = (each.removed.select(ERASED_EVENTS.names) for each in rewritten)
    return pa.concat_tables([ERASED_EVENTS.empty_table(), *removed])


def rewrite_files(
    lake: Lake, name: str, table: DeltaTable, files: list[File], search: Search
) -> dict[str, Rewrite | None]:
    """Rewrite the files that have rows to remove, durably but not yet committed; None for the others, by path.

    table: a handle of the table `name`, to which the files belong.
    """
    paths = {file.path: f"{lake.folder(name)}/{file.path}" for file in files}
    found = set(search.find(list(paths.values())))
    return {
        file.path: _rewrite(table, read_rows(name, path), file, search) if (path := paths[file.path]) in found else None
        for file in files
    }


def commit_removal(
    lake: Lake,
    name: str,
    table: DeltaTable,
    rewritten: list[Rewrite],
    marks: dict[str, int],
    metadata: dict[str, str] | None = None,
) -> None:
    """Replace the rewritten files, durably, on exactly the handle's version.

    `marks` and `metadata` as in `replace_files`; the entry also names the file of the removed events. Raises
    CommitFailedError if the handle's version is no longer the newest.
    """
    removed = removed_events(rewritten) if name == "events" else ()
    erased = write_erased_events(lake, removed) if len(removed) else []
    replaced = [each.file for each in rewritten]
    added = [action for each in rewritten for action in each.added]
    named = erased_events_metadata(erased) | (metadata or {})
    try:
        replace_files(table, replaced, added, marks, data_change=True, metadata=named)
    except CommitFailedError:
        remove_files(lake.folder(name), erased)
        raise
    make_durable([lake.entry_path(name, table.version() + 1)])


def discard_unused(lake: Lake, name: str, seen: dict[str, Rewrite | None]) -> None:
    """Remove rewritten files that were not committed, because another commit had replaced the originals."""
    discard_uncommitted(lake, name, [action for done in seen.values() if done for action in done.added])


def _rewrite(table: DeltaTable, rows: pa.Table, file: File, search: Search) -> Rewrite | None:
    """Write the rows of a file again without those to remove; None if it has no such row."""
    matched = search.match(rows)
    if not pc.any(matched, min_count=0).as_py():
        return None
    remaining = rows.filter(pc.invert(matched))
    added = write_rows(table, remaining, uuid4().hex) if len(remaining) else []
    wanted = (*ERASED.names, *ERASED_EVENTS.names)
    removed = rows.select([column for column in wanted if column in rows.column_names])
    return Rewrite(file, added, removed.filter(matched))
