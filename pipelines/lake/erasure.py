"""Erasure: the rows of users out of every table of the lake, in this order: tombstone, events, dead letters, conflicts.

Files that hold such rows are written again without them; the old ones go with the next vacuum, when no reader needs
them any more. A kill at any step leaves a lake that adds up, and erasing again finishes it: what a tombstone names and
a table still holds is removed, whoever asked for it. Each table is committed on exactly the version that was read, as
compaction does, so nothing that comes in meanwhile is missed.

Removed are a user's events; dead letters by key, by user_id, or, if they cannot be decoded, by a word of their bytes;
conflicts of the user, and those whose first event was the user's, since they hold its event_id. What other users'
events say of the user stays, and is counted (`mentions.py`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipelines.errors import TransientError
from pipelines.lake.commit import append_file
from pipelines.lake.files import make_durable, read_file, write_days, write_file
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import ERASED, ERASURES_DONE, Lake, data_files, discard_unnamed, erasures_done
from pipelines.lake.tombstones import Tombstones, tombstone
from pipelines.lake.upkeep import File, list_files, replace_files

_ATTEMPTS = 20
_TABLES = ("events", "dead_letters", "conflicts")
_SOUGHT = {"events": ["user_id"], "conflicts": ["user_id", "event_id"]}
"""The columns that tell whether a row is of an erased user; of dead letters all."""


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


def erase_users(lake: Lake, tombstones: Tombstones, user_ids: Iterable[str], digests: Collection[str] = ()) -> Erased:
    """Remove users, and those whom tombstones of another lake name, for good; ingest drops what comes of them later.

    Also finishes what an erasure that was killed left. Raises TransientError when others kept committing.
    """
    tombstones.read()
    new = [name for user_id in user_ids if not tombstones.names(name := user_id.encode())]
    tombstones.add({tombstone(name, tombstones.lake_id) for name in new} | set(digests))
    return Erased(**{name: _erase(lake, name, tombstones) for name in _TABLES})


def held_of_erased(lake: Lake, tombstones: Tombstones) -> Erased:
    """Return how many rows of erased users are still there: none, unless an erasure was killed or a lake restored."""
    counts = dict.fromkeys(_TABLES, 0)
    tombstones.read()
    for name in _TABLES if tombstones.digests else ():
        orphaned = _orphaned(lake, name)
        for path in data_files(lake.table(name)):
            counts[name] += pc.sum(_mask(name, read_file(path, _SOUGHT.get(name)), tombstones, orphaned)).as_py() or 0
    return Erased(**counts)


def _mask(name: str, rows: pa.Table, tombstones: Tombstones, orphaned: pa.Array) -> pa.BooleanArray:
    if name == "dead_letters":
        return tombstones.of_letters(rows)
    users = tombstones.of_users(rows["user_id"])
    if name == "events":
        return users
    return pc.or_(users, pc.is_in(rows["event_id"], value_set=orphaned).combine_chunks())


def _orphaned(lake: Lake, name: str) -> pa.Array:
    """Return the event_ids of committed conflicts whose first event is gone: it was of a user who was erased."""
    if name != "conflicts":
        return pa.array([], pa.string())
    snapshot = take_snapshot(lake)
    committed = pa.array({id_ for path in snapshot.files["commits"] for id_ in _column(path, "batch_id").to_pylist()})
    known = pa.array([], pa.string())
    for path in snapshot.files["conflicts"]:
        rows = read_file(path, ["event_id", "batch_id"])
        mine = rows.filter(pc.is_in(rows["batch_id"], value_set=committed.cast(pa.string())))["event_id"]
        known = pc.unique(pa.chunked_array([known, *mine.chunks], pa.string()))
    for path in snapshot.files["events"] if len(known) else ():
        known = known.filter(pc.invert(pc.is_in(known, value_set=_column(path, "event_id").combine_chunks())))
    return known


def _column(path: str, name: str) -> pa.ChunkedArray:
    return read_file(path, [name])[name]


def _erase(lake: Lake, name: str, tombstones: Tombstones) -> int:
    """Rewrite the files of a table that hold rows of erased users, and commit that; return how many rows went."""
    seen: dict[str, _Rewritten | None] = {}
    orphaned = _orphaned(lake, name)
    for _ in range(_ATTEMPTS):
        known = tombstones.digests
        erasures = tombstones.read()
        if tombstones.digests != known:  # somebody else asked meanwhile
            _discard_unused(lake, name, seen)
            seen.clear()
        table = lake.table(name)
        for file in list_files(table):
            if file.path not in seen:
                seen[file.path] = _rewrite(lake, name, file, tombstones, orphaned)
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


def _rewrite(lake: Lake, name: str, file: File, tombstones: Tombstones, orphaned: pa.Array) -> _Rewritten | None:
    """Write a file again without the rows of erased users, and note where they stood; None if it has none."""
    rows = read_file(f"{lake.folder(name)}/{file.path}")
    gone = _mask(name, rows, tombstones, orphaned)
    if not pc.any(gone, min_count=0).as_py():
        return None
    stood = rows.filter(gone)
    columns = [stood[column] if column in stood.column_names else None for column in ERASED.names]
    named = [pa.repeat(pa.scalar(name), len(stood)) if column is None else column for column in columns]
    append_file(lake, "erased", pa.table(named, schema=ERASED), uuid4().hex)
    kept, write = rows.filter(pc.invert(gone)), write_days if name == "events" else write_file
    added = write(lake.folder(name), kept, uuid4().hex) if len(kept) else []
    return _Rewritten(file, added, len(stood))
