"""Merged users: several accounts of one person, of which the events count together, under the current user_id.

Owns the table `merged_users`. Events keep the user_ids that they came with; the steps read them under the current one,
and so the values of metadata keys that hold user_ids. A rename is a merge into a user_id without events. What was known
at a moment is computed from the merges recorded before it.

Merges apply in the order of their times. Each joins the person of its user to the one that it names, so no order of
concurrent commands makes a cycle: a merge within one person only changes the current user_id.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.lake.tables import MERGED_USERS, Snapshot, read_rows
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.sql import arrow_rows, statement

ALIAS = pa.schema([("old_id", pa.string()), ("new_id", pa.string())])
_ROWS = "SELECT merge_id, user_id, merged_into, kind, merged_at, operator, why, personal_keys FROM merged_users"


@dataclass(frozen=True, slots=True)
class Merge:
    """A row of `merged_users`: from `merged_at` on, the events of `user_id` count for `merged_into`."""

    merge_id: str
    user_id: str
    merged_into: str
    kind: str
    """`merge` or `rename`."""
    merged_at: datetime
    operator: str
    why: str
    personal_keys: tuple[str, ...]
    """The metadata keys that held user_ids then; they count from this merge on, like those of earlier ones."""


@dataclass(frozen=True, slots=True)
class Aliases:
    """Which user_ids name the same person."""

    current: Mapping[str, str] = field(default_factory=dict[str, str])
    """The current user_id by each former one; no current one is a key."""
    personal_keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether any users are merged."""
        return bool(self.current)

    def resolve(self, user_id: str) -> str:
        """Return the current user_id of a person."""
        return self.current.get(user_id, user_id)

    def at_key(self, key: str, name: str) -> str:
        """Return a name as the steps read it at a metadata key: the current user_id, if the key holds user_ids."""
        return self.resolve(name) if key in self.personal_keys else name

    def names(self, user_id: str) -> list[str]:
        """Return every user_id of the person whom a user_id names, the current one first."""
        current = self.resolve(user_id)
        return [current, *sorted(old for old, new in self.current.items() if new == current)]

    def table(self) -> pa.Table:
        """Return the rows of `alias`, the table that the SQL joins: old_id, new_id."""
        rows = [{"old_id": old, "new_id": new} for old, new in sorted(self.current.items())]
        return pa.Table.from_pylist(rows, ALIAS)

    def variables(self) -> dict[str, str]:
        """Return the variables that `resolved_events` reads, by name."""
        return {f"personal_key_{number}": key for number, key in enumerate(self.personal_keys)}


NO_ALIASES = Aliases()


def aliases(merges: Iterable[Merge]) -> Aliases:
    """Return what merges add up to, in their order."""
    current, keys = dict[str, str](), set[str]()
    for merge in merges:
        old, new = (current.get(name, name) for name in (merge.user_id, merge.merged_into))
        kept = merge.merged_into if old == new else new
        joined = {name for name, named in current.items() if named in {old, new}} | {old, new}
        current |= dict.fromkeys(joined, kept)
        keys |= {*merge.personal_keys}
    return Aliases({old: new for old, new in current.items() if old != new}, tuple(sorted(keys)))


def merge_row(merge: Merge) -> dict[str, Any]:
    """Return a merge as a row of `merged_users`."""
    return {name: getattr(merge, name) for name in MERGED_USERS.names}


def merges_in(connection: duckdb.DuckDBPyConnection, known_at: datetime | None = None) -> list[Merge]:
    """Return the merges recorded before known_at (None: all), oldest first.

    A connection without the view `merged_users` has none.
    """
    try:
        rows = connection.execute(_ROWS).fetchall()
    except duckdb.CatalogException:
        return []
    named = [dict(zip(MERGED_USERS.names, row, strict=True)) for row in rows]
    return [merge for merge in _sorted(named) if known_at is None or merge.merged_at < known_at]


def aliases_in(connection: duckdb.DuckDBPyConnection, known_at: datetime | None = None) -> Aliases:
    """Return what `merges_in` adds up to."""
    return aliases(merges_in(connection, known_at))


def merges_of(snapshot: Snapshot) -> Sequence[Merge]:
    """Return all merges of a snapshot, oldest first."""
    return _merges_of_files(snapshot.files.get("merged_users", ()))


@lru_cache(maxsize=2)
def _merges_of_files(files: tuple[str, ...]) -> Sequence[Merge]:
    """Return the merges in files, which never change: a refresh a second would read them each time."""
    tables = [read_rows("merged_users", file) for file in files]
    return _sorted(pa.concat_tables([MERGED_USERS.empty_table(), *tables]).to_pylist())


def _sorted(rows: Iterable[dict[str, Any]]) -> list[Merge]:
    merges = [replace(Merge(**row), personal_keys=tuple(row["personal_keys"] or ())) for row in rows]
    return sorted(merges, key=lambda merge: (merge.merged_at, merge.merge_id))


def merges_mark(merges: Sequence[Merge]) -> str:
    """Return a text that identifies merges for `applied_merges`."""
    return f"{len(merges)} {merges[-1].merge_id}" if merges else ""


def applied_merges(mark: str, merges: Sequence[Merge]) -> Sequence[Merge]:
    """Return the merges that a mark stands for, which are the first ones of a newer list.

    Raises LookupError if they are not: an erasure has removed some, or the clock was set back between two.
    """
    count = int(mark.partition(" ")[0] or 0)
    if merges_mark(merges[:count]) != mark:
        raise LookupError("merges were removed, or came in another order")
    return merges[:count]


def moved_names(before: Aliases, after: Aliases) -> list[str]:
    """Return the user_ids whose events, or mentions in other users' events, count for another user than before."""
    names = before.current.keys() | after.current.keys()
    if set(after.personal_keys) <= set(before.personal_keys):
        names = {name for name in names if before.resolve(name) != after.resolve(name)}
    return sorted(names)


def compared_keys(policy: EffectivePolicy, *known: Aliases) -> list[str]:
    """Return the metadata keys that hold user_ids and are read by a rule or a scope of the policy."""
    read = {key for edition in policy.editions for key in edition.rules.metadata_keys}
    return sorted(read & {key for each in known for key in each.personal_keys})


def resolved_events(known: Aliases, source: str) -> str:
    """Return the query of the rows of `source` under current user_ids; needs `alias`, and the variables of `known`."""
    query = statement("resolved_users", source=source)
    for name in known.variables():
        query = statement("resolved_metadata", source=f"({query})", key=name)
    return query


def load_aliases(connection: duckdb.DuckDBPyConnection, known: Aliases) -> None:
    """Fill the temporary table `alias`, and the variables that `resolved_events` reads."""
    with arrow_rows(connection, known.table()):
        connection.execute(statement("policy_table", name="alias"))
    for name, value in known.variables().items():
        connection.execute(f"SET VARIABLE {name} = ?", [value])
