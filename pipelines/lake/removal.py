"""Removing rows from a table by one commit, or replacing some: files that hold such rows are rewritten.

Owns what an erasure (`erasure.py`) and a withdrawal (`withdrawal.py`) share. Like a compaction, the commit is on
exactly the version that was read, so rows that arrive meanwhile are not missed. A commit of `events` names a file of
the events that it removed, and one of those that replace some, from which indexes, histories and the warehouse learn
(`erased_events.py`). The old files stay readable until a vacuum.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Callable, Collection, Iterable, Sequence
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
from pipelines.lake.pseudonyms import Replaced, unchanged
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


def matching_files(search: Search, table: str, paths: Sequence[str], columns: list[str]) -> list[str]:
    """Return the files of a table with rows that a search matches; only the columns that decide it are read."""
    matched = ((path, search.match(read_rows(table, path, columns))) for path in paths)
    return [path for path, rows in matched if pc.any(rows).as_py()]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A file that had rows to remove or to replace, what replaces it, and these rows."""

    file: File
    added: list[AddAction]
    removed: pa.Table
    before: pa.Table
    """The replaced rows, as they were."""
    after: pa.Table
    """The replaced rows, as they are now."""


def removed_events(rewritten: Iterable[Rewrite]) -> pa.Table:
    """Return the rows removed from `events`, as ERASED_EVENTS."""
    return _as_events(each.removed for each in rewritten)


def _as_events(rows: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables([ERASED_EVENTS.empty_table(), *(each.select(ERASED_EVENTS.names) for each in rows)])


def rewrite_files(
    lake: Lake,
    name: str,
    table: DeltaTable,
    files: list[File],
    search: Search,
    replace: Callable[[pa.Table], Replaced] = unchanged,
) -> dict[str, Rewrite | None]:
    """Rewrite the files that have rows to remove or replace, durably but not yet committed; None for others, by path.

    table: a handle of the table `name`, to which the files belong.
    replace: replaces values in the rows that stay.
    """
    paths = {file.path: f"{lake.folder(name)}/{file.path}" for file in files}
    found = set(search.find(list(paths.values())))
    return {
        file.path: _rewrite(table, read_rows(name, path), file, search, replace)
        if (path := paths[file.path]) in found
        else None
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

    `marks` and `metadata` as in `replace_files`; the entry also names the files of removed events and of replacements.
    Raises CommitFailedError if the handle's version is no longer the newest.
    """
    written: list[list[AddAction]] = [[], []]
    if name == "events":
        gone = [removed_events(rewritten), *(each.before for each in rewritten)]
        written = [write_erased_events(lake, _as_events(rows)) for rows in (gone, [each.after for each in rewritten])]
    replaced = [each.file for each in rewritten]
    added = [action for each in rewritten for action in each.added]
    named = erased_events_metadata(*written) | (metadata or {})
    try:
        replace_files(table, replaced, added, marks, data_change=True, metadata=named)
    except CommitFailedError:
        remove_files(lake.folder(name), [file for files in written for file in files])
        raise
    make_durable([lake.entry_path(name, table.version() + 1)])


def discard_unused(lake: Lake, name: str, seen: dict[str, Rewrite | None]) -> None:
    """Remove rewritten files that were not committed, because another commit had replaced the originals."""
    discard_uncommitted(lake, name, [action for done in seen.values() if done for action in done.added])


def _rewrite(
    table: DeltaTable, rows: pa.Table, file: File, search: Search, replace: Callable[[pa.Table], Replaced]
) -> Rewrite | None:
    """Write the rows of a file again without those to remove; None if it has none to remove or replace."""
    matched = search.match(rows)
    remaining = rows.filter(pc.invert(matched))
    replaced = replace(remaining)
    if len(remaining) == len(rows) and not replaced.count:
        return None
    added = write_rows(table, replaced.rows, uuid4().hex) if len(remaining) else []
    wanted = (*ERASED.names, *ERASED_EVENTS.names)
    gone, before, after = (
        each.select([column for column in wanted if column in each.column_names]).filter(mask)
        for each, mask in ((rows, matched), (remaining, replaced.changed), (replaced.rows, replaced.changed))
    )
    return Rewrite(file, added, gone, before, after)
