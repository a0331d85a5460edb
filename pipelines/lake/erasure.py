"""Erasure: remove users from every table, in this order: tombstone, events, dead letters, conflicts, merges, changes.

Files that hold rows of the users are rewritten without them (`removal.py`); a later vacuum deletes the old files, when
no reader needs them. A crash at any step leaves a lake that reconciles, and the next erasure finishes it: it removes
the rows of every user with a tombstone.

Of `events`, only files that hold rows of the users are read whole (`user_files.py`). A tombstone does not reveal its
user: if one has not been applied yet and belongs to none of the named users, the user_ids of all events are read. Of
conflicts two columns are read, of dead letters everything, but only those that contain a name are searched for words.

An erasure removes a user's events; dead letters by key, by user_id or, if undecodable, by a token of their bytes; and
conflicts of the user, and those whose first event was the user's, since they hold its event_id; the merges of the
user's accounts; and the changes of the user's scores. In rows of other users, the user's names at
`contract.personal_keys` are replaced by a pseudonym (`pseudonyms.py`), for which the metadata of all rows are read;
other mentions stay (`mentions.py`). Indexes, caches and the warehouse read from the commit which events it removed or
replaced (`erased_events.py`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import md5
from itertools import filterfalse
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.errors import TransientError
from pipelines.lake.commit import append_file
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.pseudonyms import Replaced, unchanged
from pipelines.lake.removal import (
    Rewrite,
    Search,
    commit_removal,
    discard_unused,
    matching_files,
    removed_events,
    rewrite_files,
)
from pipelines.lake.table_files import File, list_files
from pipelines.lake.tables import (
    ERASED,
    ERASURES_DONE,
    TABLES,
    Lake,
    data_files,
    erasures_done,
    read_rows,
    withdrawals_done,
)
from pipelines.lake.tokens import contain_any
from pipelines.lake.tombstones import Tombstones, is_link, tombstone
from pipelines.lake.user_files import find_files, list_users

_ATTEMPTS = 20
_MATCHED_COLUMNS = {"events": ["user_id"], "conflicts": ["user_id", "event_id"], "score_changes": ["user_id"]}
"""The columns that decide whether a row is of an erased user; for dead letters all columns do."""
Announce = Callable[[set[str]], None]
"""Tells others of users who are erased; called again if the erasure is repeated."""
_NO_IDS = pa.chunked_array([], pa.string())


@dataclass(frozen=True, slots=True)
class ErasureCounts:
    """Numbers of rows of erased users, by table."""

    events: int
    dead_letters: int
    conflicts: int
    merged_users: int = 0
    named_by_others: int = 0
    """Rows of other users in which names at `contract.personal_keys` were, or have to be, replaced by pseudonyms."""
    score_changes: int = 0


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What an erasure did to one table; `done_before` and `done` count the erasures that were applied to it."""

    rewritten: list[Rewrite]
    done_before: int
    done: int

    @property
    def rows(self) -> int:
        """The number of rows removed."""
        return sum(len(each.removed) for each in self.rewritten)

    @property
    def renamed(self) -> int:
        """The number of rows in which names were replaced."""
        return sum(len(each.after) for each in self.rewritten)


def erase_users(
    lake: Lake,
    tombstones: Tombstones,
    user_ids: Iterable[str],
    digests: Collection[str] = (),
    persons: Mapping[str, str] | None = None,
    announce: Announce | None = None,
) -> ErasureCounts:
    """Permanently erase users from the lake; return how many rows were removed or replaced.

    Ingest drops their later records. `persons` is the current user_id by each former one: their pseudonym is one.
    `digests` are tombstones of another lake, whose users are erased, too. `announce` is called with the users in the
    feed before their changes are removed, since only these name them. Also finishes an erasure that was killed.
    Raises TransientError when other processes kept committing through all attempts. A crash leaves tombstones, and
    tables that may still have rows of the users: run it again.
    """
    users = frozenset(user_ids)
    applied = {name: tombstones.applied_to(lake.table(name)) - set(digests) for name in ("events", "dead_letters")}
    tombstones.read()
    new = [name for user_id in users if not tombstones.contains(name := user_id.encode())]
    added = {tombstone(name, tombstones.lake_id) for name in new}
    tombstones.add(added | set(digests) | set(_links(tombstones, added, users, persons or {})))
    events = _erase(lake, "events", tombstones, _EventSearch(tombstones, set(users), applied["events"]))
    by_text = _DeadLetterSearch(tombstones, users, applied["dead_letters"])
    letters = _erase(lake, "dead_letters", tombstones, by_text, events.done)
    conflicts = _erase(lake, "conflicts", tombstones, _conflict_search(lake, tombstones, events), events.done)
    merges = _erase(lake, "merged_users", tombstones, _MergeSearch(tombstones), events.done)
    changes = _erase(lake, "score_changes", tombstones, _ChangeSearch(tombstones), events.done, announce)
    renamed = sum(each.renamed for each in (events, letters, conflicts))
    return ErasureCounts(events.rows, letters.rows, conflicts.rows, merges.rows, renamed, changes.rows)


def count_remaining_rows(lake: Lake, tombstones: Tombstones) -> ErasureCounts:
    """Count the rows of erased users that remain: none, unless an erasure was killed or a lake restored from a copy."""
    tombstones.read()
    return _count_rows(lake, tombstones, _unfinished_orphans(lake)) if tombstones.digests else ErasureCounts(0, 0, 0)


def preview_erasure(
    lake: Lake, tombstones: Tombstones, user_ids: Iterable[str], digests: Collection[str] = ()
) -> ErasureCounts:
    """Return what `erase_users` would remove and replace; change nothing. Reads user_ids of all events."""
    tombstones.read()
    added = {tombstone(name.encode(), tombstones.lake_id) for name in user_ids}
    tombstones.assume(added | set(filterfalse(is_link, digests)))
    search = _EventSearch(tombstones, set(), frozenset())
    paths = search.find(data_files(lake.table("events")))
    found = (read_rows("events", path, ["user_id", "event_id"]) for path in paths)
    ids = [chunk for rows in found for chunk in rows.filter(search.match(rows))["event_id"].chunks]
    return _count_rows(lake, tombstones, pa.chunked_array(ids, pa.string()))


def _count_rows(lake: Lake, tombstones: Tombstones, orphaned: pa.ChunkedArray) -> ErasureCounts:
    return ErasureCounts(
        _count(lake, "events", _EventSearch(tombstones, set(), frozenset())),
        _count(lake, "dead_letters", _DeadLetterSearch(tombstones, frozenset(), frozenset())),
        _count(lake, "conflicts", _ConflictSearch(tombstones, orphaned)),
        _count(lake, "merged_users", _MergeSearch(tombstones)),
        sum(_count_names(lake, name, tombstones) for name in ("events", "dead_letters", "conflicts")),
        _count(lake, "score_changes", _ChangeSearch(tombstones)),
    )


def _links(
    tombstones: Tombstones, added: Collection[str], users: Iterable[str], persons: Mapping[str, str]
) -> Iterable[str]:
    """Yield a link for each former user_id, of tombstones that exist or are `added`."""

    def known(user_id: str) -> str:
        return tombstones.find(user_id.encode()) or tombstone(user_id.encode(), tombstones.lake_id)

    for user_id in users:
        former, current = known(user_id), known(persons.get(user_id, user_id))
        if former != current and current in tombstones.digests | set(added):
            yield f"{former}={current}"


def _replacing(name: str, tombstones: Tombstones) -> Callable[[pa.Table], Replaced]:
    """Return what replaces names in rows of a table."""
    if "metadata" in TABLES[name].names:
        return tombstones.replace_names
    return tombstones.replace_in_dead_letters if name == "dead_letters" else unchanged


def _count_names(lake: Lake, name: str, tombstones: Tombstones) -> int:
    """Count the rows of other users with names to replace; with personal keys, reads the metadata of all rows."""
    if not tombstones.contract.personal_keys:
        return 0
    columns = ["user_id", "metadata"] if name != "dead_letters" else None
    tables = (read_rows(name, path, columns) for path in data_files(lake.table(name)))
    return sum(_replacing(name, tombstones)(_of_others(name, rows, tombstones)).count for rows in tables)


def _of_others(name: str, rows: pa.Table, tombstones: Tombstones) -> pa.Table:
    if name == "dead_letters":
        return rows.filter(pc.invert(tombstones.match_dead_letters(rows)))
    return rows.filter(pc.invert(tombstones.match_users(rows["user_id"])))


@dataclass(frozen=True, slots=True)
class _NameSearch:
    """What another search finds, and the files with names to replace: their metadata is read."""

    name: str
    tombstones: Tombstones
    search: Search

    def find(self, paths: Sequence[str]) -> Collection[str]:
        found = set(self.search.find(paths))
        if self.tombstones.contract.personal_keys and "metadata" in TABLES[self.name].names:
            found |= {path for path in paths if path not in found and self._has_names(path)}
        return found

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        return self.search.match(rows)

    def _has_names(self, path: str) -> bool:
        return self.tombstones.replace_names(read_rows(self.name, path, ["metadata"])).count > 0


def _count(lake: Lake, name: str, search: Search) -> int:
    found = search.find(data_files(lake.table(name)))
    matched = (search.match(read_rows(name, path, _MATCHED_COLUMNS.get(name))) for path in found)
    return sum(pc.sum(rows).as_py() or 0 for rows in matched)


@dataclass(slots=True)
class _EventSearch:
    """Events of `users`, to which `find` adds the users that are known by their tombstones only."""

    tombstones: Tombstones
    users: set[str]
    applied: frozenset[str]
    """Tombstones that were applied to the table."""

    def find(self, paths: Sequence[str]) -> Collection[str]:
        if self.tombstones.unnamed(self.users, self.applied):
            self.users |= {user for user in list_users(paths) if self.tombstones.contains(user.encode())}
        return find_files(paths, self.users)

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        return pc.is_in(rows["user_id"], value_set=pa.array(sorted(self.users), pa.string())).combine_chunks()


@dataclass(frozen=True, slots=True)
class _DeadLetterSearch:
    """Dead letters of erased users. Where all users are known by name, undecodable letters without one are skipped."""

    tombstones: Tombstones
    users: frozenset[str]
    applied: frozenset[str]
    """As in `_EventSearch`."""

    def find(self, paths: Sequence[str]) -> Collection[str]:
        return paths

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        unnamed = self.tombstones.unnamed(self.users, self.applied)
        return self.tombstones.match_dead_letters(rows, None if unnamed else contain_any(rows, self.users))


@dataclass(frozen=True, slots=True)
class _ConflictSearch:
    """Conflicts of erased users, and those whose first event was theirs."""

    tombstones: Tombstones
    orphaned: pa.ChunkedArray

    def find(self, paths: Sequence[str]) -> Collection[str]:
        return matching_files(self, "conflicts", paths, _MATCHED_COLUMNS["conflicts"])

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        orphaned = pc.is_in(rows["event_id"], value_set=self.orphaned).combine_chunks()
        return pc.or_(self.tombstones.match_users(rows["user_id"]), orphaned)


@dataclass(frozen=True, slots=True)
class _MergeSearch:
    """Merges of accounts of erased users."""

    tombstones: Tombstones

    def find(self, paths: Sequence[str]) -> Collection[str]:
        return paths

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        return pc.or_(*(self.tombstones.match_users(rows[column]) for column in ("user_id", "merged_into")))


@dataclass(frozen=True, slots=True)
class _ChangeSearch:
    """Changes of erased users in the feed."""

    tombstones: Tombstones

    def find(self, paths: Sequence[str]) -> Collection[str]:
        return matching_files(self, "score_changes", paths, _MATCHED_COLUMNS["score_changes"])

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        return self.tombstones.match_users(rows["user_id"])


def _conflict_search(lake: Lake, tombstones: Tombstones, events: _Outcome) -> _ConflictSearch:
    """Return the search after `events`, whose event_ids are the orphaned ones unless an earlier erasure was killed."""
    is_complete = erasures_done(lake.table("conflicts")) == events.done_before
    erased = removed_events(events.rewritten)["event_id"]
    return _ConflictSearch(tombstones, erased if is_complete else _orphaned_ids(lake))


def _unfinished_orphans(lake: Lake) -> pa.ChunkedArray:
    """Return the orphaned event_ids; none if erasures are complete and a withdrawal may have removed first events."""
    events, conflicts = lake.table("events"), lake.table("conflicts")
    is_complete = erasures_done(conflicts) == erasures_done(events)
    return _NO_IDS if is_complete and withdrawals_done(events) else _orphaned_ids(lake)


def _orphaned_ids(lake: Lake) -> pa.ChunkedArray:
    """Return the event_ids of committed conflicts whose first event was erased. Reads the event_ids of all events."""
    snapshot = take_snapshot(lake)
    if not snapshot.files["conflicts"]:
        return _NO_IDS
    batches = (_column("commits", path, "batch_id").to_pylist() for path in snapshot.files["commits"])
    committed = pa.array({batch_id for batch_ids in batches for batch_id in batch_ids})
    known = pa.array([], pa.string())
    for path in snapshot.files["conflicts"]:
        rows = read_rows("conflicts", path, ["event_id", "batch_id"])
        event_ids = rows.filter(pc.is_in(rows["batch_id"], value_set=committed.cast(pa.string())))["event_id"]
        known = pc.unique(pa.chunked_array([known, *event_ids.chunks], pa.string()))
    for path in snapshot.files["events"] if len(known) else ():
        known = known.filter(pc.invert(pc.is_in(known, value_set=_column("events", path, "event_id").combine_chunks())))
    return pa.chunked_array([known], pa.string())


def _column(table: str, path: str, name: str) -> pa.ChunkedArray:
    return read_rows(table, path, [name])[name]


def _erase(
    lake: Lake,
    name: str,
    tombstones: Tombstones,
    search: Search,
    done: int | None = None,
    announce: Announce | None = None,
) -> _Outcome:
    """Rewrite the files of a table that hold rows of erased users, and commit.

    The commit records that `done` erasures have been applied to the table; None: all that are known. `announce` is
    called before it with the users whose rows it removes.
    """
    seen: dict[str, Rewrite | None] = {}
    for _ in range(_ATTEMPTS):
        known = tombstones.digests
        erasures = tombstones.read()
        if tombstones.digests != known:  # another process added some meanwhile
            discard_unused(lake, name, seen)
            seen.clear()
        table = lake.table(name)
        files = list_files(table)
        unseen = [file for file in files if file.path not in seen]
        seen |= _rewrite_files(lake, name, table, unseen, tombstones, search)
        rewritten = [each for file in files if (each := seen[file.path])]
        if done is None and rewritten and erasures == erasures_done(table):
            erasures = tombstones.repeat()  # the users were erased before, and a key has become a personal one
        outcome = _Outcome(rewritten, erasures_done(table), erasures if done is None else done)
        if not outcome.rewritten and outcome.done == outcome.done_before:
            return outcome
        if announce:
            announce({user_id for each in outcome.rewritten for user_id in each.removed["user_id"].to_pylist()})
        try:
            commit_removal(lake, name, table, outcome.rewritten, {ERASURES_DONE: outcome.done})
        except CommitFailedError:
            continue
        discard_unused(lake, name, seen)
        return outcome
    discard_unused(lake, name, seen)
    raise TransientError(f"other writers kept committing to {lake.folder(name)}: erase again, which resumes it")


def _rewrite_files(
    lake: Lake, name: str, table: DeltaTable, files: list[File], tombstones: Tombstones, search: Search
) -> dict[str, Rewrite | None]:
    """Rewrite the files that hold or name erased users, and record the places of removed rows in `erased`."""
    search = _NameSearch(name, tombstones, search)
    done = rewrite_files(lake, name, table, files, search, _replacing(name, tombstones))
    removed = [each.removed for each in done.values() if each and len(each.removed)]
    if removed and "topic_id" in TABLES[name].names:
        append_file(lake, "erased", _places(name, pa.concat_tables(removed)), uuid4().hex)
    return done


def _places(name: str, removed: pa.Table) -> pa.Table:
    """Return rows of `erased` for rows that are removed from a table."""
    added = {"table_name": pa.repeat(pa.scalar(name), len(removed)), "event_digest": _event_digests(removed)}
    return pa.table([added[column] if column in added else removed[column] for column in ERASED.names], schema=ERASED)


def _event_digests(removed: pa.Table) -> pa.Array:
    """Return the digest of batch_id and event_id of each row, as `sql/lake_views.sql` takes it; null without an id."""
    if "event_id" not in removed.column_names:
        return pa.nulls(len(removed), pa.string())
    ids = zip(removed["batch_id"].to_pylist(), removed["event_id"].to_pylist(), strict=True)
    return pa.array([md5(f"{batch}{event}".encode(), usedforsecurity=False).hexdigest() for batch, event in ids])
