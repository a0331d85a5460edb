"""Erasure: the rows of users out of every table of the lake, in this order: tombstone, events, dead letters, conflicts.

Files that hold such rows are written again without them; the old ones go with the next vacuum, when no reader needs
them any more. A kill at any step leaves a lake that adds up, and erasing again finishes it: what a tombstone names and
a table still holds is removed, whoever asked for it. Each table is committed on exactly the version that was read, as
compaction does, so nothing that comes in meanwhile is missed.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipelines.errors import TransientError
from pipelines.lake.commit import append_file
from pipelines.lake.files import make_durable, read_file, write_days, write_file
from pipelines.lake.tables import ERASED, ERASURES, ERASURES_DONE, Lake, data_files, discard_unnamed, erasures_done
from pipelines.lake.tombstones import Tombstones, user_digest
from pipelines.lake.upkeep import File, list_files, replace_files

_ATTEMPTS = 20
_TABLES = ("events", "dead_letters", "conflicts")


@dataclass(frozen=True, slots=True)
class Erased:
    """Rows of each table."""

    events: int
    dead_letters: int
    conflicts: int


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A file without the rows of erased users: what takes its place, and how many rows went."""

    file: File
    added: list[AddAction]
    rows: int


def erase_users(lake: Lake, tombstones: Tombstones, user_ids: Iterable[str]) -> Erased:
    """Remove users from the lake for good; what comes of them later is dropped by ingest.

    Also finishes what an erasure that was killed left. Raises TransientError when others kept committing.
    """
    tombstones.read()
    digests = {user_digest(user_id.encode(), tombstones.lake_id) for user_id in user_ids} - tombstones.digests
    if digests:
        rows = [{"user_digest": digest, "asked": datetime.now(UTC)} for digest in sorted(digests)]
        append_file(lake, "erasures", pa.Table.from_pylist(rows, ERASURES), uuid4().hex)
    return Erased(**{name: _erase(lake, name, tombstones) for name in _TABLES})


def held_of_erased(lake: Lake, tombstones: Tombstones) -> Erased:
    """Return how many rows of erased users are still there: none, unless an erasure was killed."""
    counts = dict.fromkeys(_TABLES, 0)
    for name in _TABLES if tombstones.read() else ():
        for path in data_files(lake.table(name)):
            counts[name] += pc.sum(_mask(name, read_file(path), tombstones)).as_py() or 0
    return Erased(**counts)


def _mask(name: str, rows: pa.Table, tombstones: Tombstones) -> pa.BooleanArray:
    return tombstones.of_letters(rows) if name == "dead_letters" else tombstones.of_users(rows["user_id"])


def _erase(lake: Lake, name: str, tombstones: Tombstones) -> int:
    """Rewrite the files of a table that hold rows of erased users, and commit that; return how many rows went."""
    seen: dict[str, _Rewritten | None] = {}
    for _ in range(_ATTEMPTS):
        known = tombstones.digests
        erasures = tombstones.read()
        if tombstones.digests != known:  # somebody else asked meanwhile
            _discard_unused(lake, name, seen)
            seen.clear()
        table = lake.table(name)
        for file in list_files(table):
            if file.path not in seen:
                seen[file.path] = _rewrite(lake, name, file, tombstones)
        there = {file.path for file in list_files(table)}
        rewritten = [done for path, done in seen.items() if done and path in there]
        if not rewritten and (name != "events" or erasures_done(table) == erasures):
            return 0
        try:
            marks = {ERASURES_DONE: erasures} if name == "events" else {}
            added = [action for done in rewritten for action in done.added]
            replace_files(table, [done.file for done in rewritten], added, marks, data_change=True)
        except CommitFailedError:
            continue
        make_durable([lake.entry(name, table.version() + 1)])
        _discard_unused(lake, name, seen)
        return sum(done.rows for done in rewritten)
    _discard_unused(lake, name, seen)
    raise TransientError(f"others kept committing to {lake.folder(name)}: erase again, it goes on where it was")


def _discard_unused(lake: Lake, name: str, seen: dict[str, _Rewritten | None]) -> None:
    """Remove files that were written again in vain, since others had replaced the originals by then."""
    discard_unnamed(lake, name, [action for done in seen.values() if done for action in done.added])


def _rewrite(lake: Lake, name: str, file: File, tombstones: Tombstones) -> _Rewritten | None:
    """Write a file again without the rows of erased users, and note where they stood; None if it has none."""
    rows = read_file(f"{lake.folder(name)}/{file.path}")
    gone = _mask(name, rows, tombstones)
    if not pc.any(gone, min_count=0).as_py():
        return None
    stood = rows.filter(gone)
    columns = [stood[column] if column in stood.column_names else None for column in ERASED.names]
    named = [pa.repeat(pa.scalar(name), len(stood)) if column is None else column for column in columns]
    append_file(lake, "erased", pa.table(named, schema=ERASED), uuid4().hex)
    kept, write = rows.filter(pc.invert(gone)), write_days if name == "events" else write_file
    added = write(lake.folder(name), kept, uuid4().hex) if len(kept) else []
    return _Rewritten(file, added, len(stood))
