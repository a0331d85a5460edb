"""Erasure: remove users from every table of the lake, in this order: tombstone, events, dead letters, conflicts.

Files that hold rows of the users are rewritten without them; the old files go with a later vacuum, when no reader needs
them. A crash at any step leaves a lake that reconciles, and the next erasure finishes it: it removes the rows of every
user with a tombstone. Like a compaction, each commit is on exactly the version that was read, so rows that arrive
meanwhile are not missed.

An erasure removes a user's events; dead letters by key, by user_id or, if undecodable, by a token of their bytes; and
conflicts of the user, and those whose first event was the user's, since they hold its event_id. Mentions of the user in
events of other users stay, and are counted (`mentions.py`).
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
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.files import make_durable, write_days, write_file
from pipelines.lake.tables import (
    ERASED,
    ERASURES_DONE,
    Lake,
    data_files,
    discard_uncommitted,
    erasures_done,
    read_rows,
)
from pipelines.lake.tombstones import Tombstones, tombstone
from pipelines.lake.upkeep import File, list_files, replace_files

_ATTEMPTS = 20
_TABLES = ("events", "dead_letters", "conflicts")
_MATCHED_COLUMNS = {"events": ["user_id"], "conflicts": ["user_id", "event_id"]}
"""The columns that decide whether a row is of an erased user; for dead letters all columns do."""


@dataclass(frozen=True, slots=True)
class ErasureCounts:
    """Numbers of rows of erased users, by table."""

    events: int
    dead_letters: int
    conflicts: int


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """A file that had rows of erased users, what replaces it, and how many rows were removed."""

    file: File
    added: list[AddAction]
    rows: int


def erase_users(
    lake: Lake, tombstones: Tombstones, user_ids: Iterable[str], digests: Collection[str] = ()
) -> ErasureCounts:
    """Permanently erase users from the lake; return how many rows were removed. Ingest drops their later records.

    `digests` are tombstones of another lake, whose users are erased, too. Also finishes an erasure that was killed.
    Raises TransientError when other processes kept committing through all attempts. A crash leaves tombstones, and
    tables that may still have rows of the users: run it again.
    """
    tombstones.read()
    new = [name for user_id in user_ids if not tombstones.contains(name := user_id.encode())]
    tombstones.add({tombstone(name, tombstones.lake_id) for name in new} | set(digests))
    return ErasureCounts(**{name: _erase(lake, name, tombstones) for name in _TABLES})


def count_remaining_rows(lake: Lake, tombstones: Tombstones) -> ErasureCounts:
    """Count the rows of erased users that remain: none, unless an erasure was killed or a lake restored from a copy."""
    counts = dict.fromkeys(_TABLES, 0)
    tombstones.read()
    for name in _TABLES if tombstones.digests else ():
        orphaned = _orphaned_ids(lake, name)
        for path in data_files(lake.table(name)):
            rows = read_rows(name, path, _MATCHED_COLUMNS.get(name))
            counts[name] += pc.sum(_match_rows(name, rows, tombstones, orphaned)).as_py() or 0
    return ErasureCounts(**counts)


def _match_rows(name: str, rows: pa.Table, tombstones: Tombstones, orphaned: pa.Array) -> pa.BooleanArray:
    if name == "dead_letters":
        return tombstones.match_dead_letters(rows)
    users = tombstones.match_users(rows["user_id"])
    if name == "events":
        return users
    return pc.or_(users, pc.is_in(rows["event_id"], value_set=orphaned).combine_chunks())


def _orphaned_ids(lake: Lake, name: str) -> pa.Array:
    """Return the event_ids of committed conflicts whose first event was erased; none for the other tables."""
    if name != "conflicts":
        return pa.array([], pa.string())
    snapshot = take_snapshot(lake)
    batches = (_column("commits", path, "batch_id").to_pylist() for path in snapshot.files["commits"])
    committed = pa.array({batch_id for batch_ids in batches for batch_id in batch_ids})
    known = pa.array([], pa.string())
    for path in snapshot.files["conflicts"]:
        rows = read_rows("conflicts", path, ["event_id", "batch_id"])
        here = rows.filter(pc.is_in(rows["batch_id"], value_set=committed.cast(pa.string())))["event_id"]
        known = pc.unique(pa.chunked_array([known, *here.chunks], pa.string()))
    for path in snapshot.files["events"] if len(known) else ():
        known = known.filter(pc.invert(pc.is_in(known, value_set=_column("events", path, "event_id").combine_chunks())))
    return known


def _column(table: str, path: str, name: str) -> pa.ChunkedArray:
    return read_rows(table, path, [name])[name]


def _erase(lake: Lake, name: str, tombstones: Tombstones) -> int:
    """Rewrite the files of a table that hold rows of erased users, and commit; return the number of rows removed."""
    seen: dict[str, _Rewrite | None] = {}
    orphaned = _orphaned_ids(lake, name)
    for _ in range(_ATTEMPTS):
        known = tombstones.digests
        erasures = tombstones.read()
        if tombstones.digests != known:  # another process added some meanwhile
            _discard_unused(lake, name, seen)
            seen.clear()
        table = lake.table(name)
        for file in list_files(table):
            if file.path not in seen:
                seen[file.path] = _rewrite(lake, name, file, tombstones, orphaned)
        current = {file.path for file in list_files(table)}
        rewritten = [done for path, done in seen.items() if done and path in current]
        if not rewritten and (name != "events" or erasures_done(table) == erasures):
            return 0
        try:
            marks = {ERASURES_DONE: erasures} if name == "events" else {}
            added = [action for done in rewritten for action in done.added]
            replace_files(table, [done.file for done in rewritten], added, marks, data_change=True)
        except CommitFailedError:
            continue
        make_durable([lake.entry_path(name, table.version() + 1)])
        _discard_unused(lake, name, seen)
        return sum(done.rows for done in rewritten)
    _discard_unused(lake, name, seen)
    raise TransientError(f"other writers kept committing to {lake.folder(name)}: erase again, which resumes it")


def _discard_unused(lake: Lake, name: str, seen: dict[str, _Rewrite | None]) -> None:
    """Remove rewritten files that were not committed, because another commit had replaced the originals."""
    discard_uncommitted(lake, name, [action for done in seen.values() if done for action in done.added])


def _rewrite(lake: Lake, name: str, file: File, tombstones: Tombstones, orphaned: pa.Array) -> _Rewrite | None:
    """Rewrite a file without rows of erased users, and record their places in `erased`; None if it has no such row."""
    rows = read_rows(name, f"{lake.folder(name)}/{file.path}")
    matched = _match_rows(name, rows, tombstones, orphaned)
    if not pc.any(matched, min_count=0).as_py():
        return None
    removed = rows.filter(matched)
    columns = [removed[column] if column in removed.column_names else None for column in ERASED.names]
    filled = [pa.repeat(pa.scalar(name), len(removed)) if column is None else column for column in columns]
    append_file(lake, "erased", pa.table(filled, schema=ERASED), uuid4().hex)
    kept, write = rows.filter(pc.invert(matched)), write_days if name == "events" else write_file
    added = write(lake.folder(name), kept, uuid4().hex) if len(kept) else []
    return _Rewrite(file, added, len(removed))
