"""Tombstones of erased users: digests of user_ids, by which ingest drops later records of them (`erasable`).

A tombstone is `KEY:DIGEST`, the digest of a user_id under a key. It does not reveal the user, and any lake can check a
user_id against it. The key is the id of the lake that first erased the user; a row of `erasures` without a key is under
the id of its own lake. A link, `TOMBSTONE=TOMBSTONE`, says that the first user_id belonged to the person whose current
user_id has the second one: all of them have one pseudonym (`pseudonyms.py`). Tombstones are in that table and in a file
next to the lake (`tombstone_file.py`), so they outlive the lake: each start of ingest copies missing ones both ways. A
tombstone is written before any row is removed. Ingest reads it after the commit of `events` that removes the user: a
batch read before that cannot commit without being filtered again (`fenced`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipelines.contract.decode import Decoded
from pipelines.contract.names import replace_in_value
from pipelines.contract.queue_messages import unwrap_bodies
from pipelines.contract.schema import POSITION, filter_rows
from pipelines.contract.schema_ids import schema_references
from pipelines.contract.values import parse_values
from pipelines.ingest.sources import CONTRACT, topic_sources
from pipelines.lake.commit import append_file
from pipelines.lake.pseudonyms import Replaced, pseudonym, replace_names, unchanged
from pipelines.lake.tables import ERASURES, Lake, data_files, erasures_done, is_lake, read_rows
from pipelines.lake.tokens import tokenize_bytes
from pipelines.lake.tombstone_file import append_tombstones, lake_tombstones, qualify, read_tombstones
from pipelines.settings import ContractSettings, Settings

_DIGEST_BYTES = 32


def tombstone(user_id: bytes, key: str) -> str:
    """Return the tombstone of a user under a key: the key, and BLAKE2b-256 of the user_id under it, in hex."""
    return f"{key}:{blake2b(user_id, key=key.encode()[:64], digest_size=_DIGEST_BYTES).hexdigest()}"


def keys_of(tombstones: Iterable[str]) -> frozenset[str]:
    """Return the keys of tombstones: one for each lake that was the first to erase a user."""
    return frozenset(each.partition(":")[0] for each in tombstones)


def is_link(entry: str) -> bool:
    """Return whether an entry beside tombstones is a link, which erases no user by itself."""
    return "=" in entry


@dataclass(frozen=True, slots=True)
class Filtered:
    """A decoded batch without records of erased users."""

    decoded: Decoded
    dropped: pa.Table
    """POSITION columns: the dropped events and rejected records."""
    renamed: int = 0
    """The number of remaining events and rejected records in which names were replaced by pseudonyms."""


@dataclass(slots=True)
class Tombstones:
    """The tombstones of a lake, as read last."""

    lake: Lake
    contract: ContractSettings
    lake_id: str
    file: Path
    """The file of tombstones next to the lake."""
    mapped_topics: frozenset[str] = frozenset()
    """The topics that are not in our own contract."""
    digests: frozenset[str] = frozenset()
    keys: frozenset[str] = field(default_factory=frozenset[str])
    persons: Mapping[str, str] = field(default_factory=dict[str, str])
    """The tombstone of the current user_id of a person, by those of the former ones."""
    done: int = 0
    """How many erasures the last version seen of `events` has applied."""
    version: int = -1
    """The last version seen of `events`."""
    erasures_version: int | None = None
    """The version of `erasures` that `catch_up_now` saw last."""

    def catch_up(self, events: DeltaTable) -> None:
        """Read tombstones if more erasures have been applied to the handle `events` since the last version seen."""
        if events.version() != self.version and erasures_done(events) != self.done:
            self.read()
            self.done = erasures_done(events)
        self.version = events.version()

    def catch_up_now(self) -> bool:
        """Read tombstones if some were added since the last call, also by an erasure under way; return whether so."""
        version = self.lake.table("erasures").version()
        is_behind = version != self.erasures_version
        if is_behind:
            self.read()
            self.erasures_version = version
        return is_behind

    def see_own_commit(self, version: int) -> None:
        """Note a version that this process has just made of the one seen before: no erasure came between."""
        self.version = version

    def read(self) -> int:
        """Read all tombstones, also those of erasures under way; return the number of rows of `erasures`."""
        rows = self._rows()
        self._hold({qualify(row, self.lake_id) for row in rows} | read_tombstones(self.file))
        return len(rows)

    def read_file(self) -> None:
        """Read only the tombstones in the file, where there is no lake."""
        self._hold(set(read_tombstones(self.file)))

    def _hold(self, entries: set[str]) -> None:
        links = set(filter(is_link, entries))
        self.digests, self.persons = frozenset(entries - links), dict(sorted(link.split("=") for link in links))
        self.keys = keys_of(self.digests)

    def add(self, digests: Collection[str] = ()) -> None:
        """Add tombstones and links to the table and the file, durably, with those that only one of the two has."""
        stored = {qualify(row, self.lake_id) for row in self._rows()}
        everything = stored | read_tombstones(self.file) | set(digests)
        if missing := sorted(everything - stored):
            self._append(missing)
        append_tombstones(self.file, everything)
        self.read()

    def assume(self, digests: Collection[str]) -> None:
        """Treat more users as erased, until tombstones are read again, and store nothing."""
        self.digests |= set(digests)
        self.keys = keys_of(self.digests)

    def repeat(self) -> int:
        """Add a row to the table that it has already, so that the next erasure counts; return the number of rows.

        Caches look for replaced events only if more erasures were applied than they know of.
        """
        self._append(sorted(self.digests)[:1])
        return self.read()

    def _append(self, rows: Iterable[str]) -> None:
        asked = datetime.now(UTC)
        added = [{"user_digest": row, "asked": asked} for row in rows]
        append_file(self.lake, "erasures", pa.Table.from_pylist(added, ERASURES), uuid4().hex)

    def applied_to(self, table: DeltaTable) -> frozenset[str]:
        """Return the tombstones that have been applied to a table at the handle's version.

        None, unless all those in `erasures` have been: a table has the number of the applied ones only.
        """
        rows = self._rows()
        is_complete = erasures_done(table) == len(rows)
        return frozenset(qualify(row, self.lake_id) for row in rows) if is_complete else frozenset()

    def contains(self, user_id: bytes) -> bool:
        """Return whether a user was erased."""
        return self.find(user_id) is not None

    def find(self, user_id: bytes) -> str | None:
        """Return the tombstone of a user, None if the user was not erased; the first one of several."""
        found = (each for key in self.keys if (each := tombstone(user_id, key)) in self.digests)
        return min(found, default=None)

    def pseudonym_of(self, user_id: str) -> str | None:
        """Return the pseudonym of the person whom a user_id names; None if that person was not erased."""
        found = self.find(user_id.encode())
        return None if found is None else pseudonym(self.persons.get(found, found))

    def unnamed(self, user_ids: Iterable[str], applied: frozenset[str]) -> frozenset[str]:
        """Return the tombstones, except applied ones, whose users are none of `user_ids`."""
        named = {tombstone(user_id.encode(), key) for user_id in user_ids for key in self.keys}
        return self.digests - applied - named

    def drop_erased(self, decoded: Decoded) -> Filtered:
        """Return a batch without the records of erased users, whose names are replaced in other events."""
        if not self.digests:
            return Filtered(decoded, POSITION.empty_table())
        events = pc.invert(self.match_users(decoded.events["user_id"]))
        letters = pc.invert(self.match_dead_letters(decoded.rejected))
        dropped = [decoded.events.filter(pc.invert(events)), decoded.rejected.filter(pc.invert(letters))]
        others = self.replace_names(filter_rows(decoded.events, events))
        rejected = self.replace_in_dead_letters(filter_rows(decoded.rejected, letters))
        remaining = replace(
            decoded, events=others.rows, rejected=rejected.rows, mis_keyed=pc.filter(decoded.mis_keyed, events)
        )
        positions = pa.concat_tables([rows.select(POSITION.names) for rows in dropped])
        return Filtered(remaining, positions, others.count + rejected.count)

    def replace_names(self, events: pa.Table) -> Replaced:
        """Replace the names of erased users at personal keys of events; a column `metadata` is enough."""
        if not (self.digests and self.contract.personal_keys and len(events)):
            return unchanged(events)
        return replace_names(events, self.contract.personal_keys, self.pseudonym_of)

    def replace_in_dead_letters(self, letters: pa.Table) -> Replaced:
        """Replace the names of erased users at personal keys of dead letters (REJECTED columns), where possible."""
        if not (self.digests and self.contract.personal_keys and len(letters)):
            return unchanged(letters)
        unwrapped, values = unwrap_bodies(letters, self.contract), letters["value"].combine_chunks()
        new = dict[int, bytes]()
        for row in self._naming_rows(unwrapped):
            value = unwrapped["value"][row].as_py()
            replaced = replace_in_value(value, self.contract.format, self.contract.personal_keys, self.pseudonym_of)
            new |= {row: replaced} if replaced != value else {}
        column = letters.schema.get_field_index("value")
        rewritten = pa.array([new.get(row, value) for row, value in enumerate(values.to_pylist())], values.type)
        changed = pa.array([row in new for row in range(len(letters))], pa.bool_())
        return Replaced(
            letters.set_column(column, letters.schema.field(column), rewritten) if new else letters, changed
        )

    def _naming_rows(self, letters: pa.Table) -> list[int]:
        """Return the numbers of the dead letters to rewrite: their bare, decodable value names an erased user."""
        values, headers = (letters[name].combine_chunks() for name in ("value", "headers"))
        parsed, (codes, _) = parse_values(values, self.contract, headers), schema_references(values, headers)
        named = np.flatnonzero(self.replace_names(parsed.events).changed.to_numpy(zero_copy_only=False)).tolist()
        others = parsed.errors.keys() | self._mapped_rows(letters) | set(np.flatnonzero(codes >= 0).tolist())
        return [row for row in named if row not in others]

    def match_users(self, user_ids: pa.ChunkedArray) -> pa.BooleanArray:
        """Return which of many user_ids (string or binary) are of erased users; a null is not."""
        names = pc.unique(user_ids.cast(pa.binary())) if self.digests else pa.array([], pa.binary())
        erased = [name for name in names.to_pylist() if name is not None and self.contains(name)]
        return pc.is_in(user_ids.cast(pa.binary()), value_set=pa.array(erased, pa.binary())).combine_chunks()

    def match_dead_letters(self, letters: pa.Table, suspects: pa.BooleanArray | None = None) -> pa.BooleanArray:
        """Return which dead letters (REJECTED columns) are of erased users.

        A dead letter matches by its key or its decoded user_id; one that is undecodable, or not in our own contract,
        matches by any of its tokens, which takes some 200 microseconds. `suspects` are those that may, None all. One
        with a schema id, which cannot be rewritten, also matches by its personal keys.
        """
        letters = unwrap_bodies(letters, self.contract)
        values, headers = (letters[name].combine_chunks() for name in ("value", "headers"))
        parsed = parse_values(values, self.contract, headers)
        named = pc.or_(self.match_users(letters["key"]), self.match_users(parsed.events["user_id"]))
        framed = pa.array(schema_references(values, headers)[0] >= 0)
        named = pc.or_(named, pc.and_(framed, self.replace_names(parsed.events).changed))
        mentioning = np.zeros(len(letters), bool)
        chosen = np.ones(len(letters), bool) if suspects is None else suspects.to_numpy(zero_copy_only=False)
        for row in filter(chosen.__getitem__, parsed.errors.keys() | self._mapped_rows(letters)):
            mentioning[row] = self.mentions_erased(letters.slice(row, 1))
        return pc.or_(named, pa.array(mentioning))

    def _mapped_rows(self, letters: pa.Table) -> set[int]:
        """Return the numbers of the dead letters whose values are not in our own contract."""
        if not self.mapped_topics:
            return set()
        topics = pa.array([name for topic in self.mapped_topics for name in (topic, f"replay:{topic}")])
        return set(pc.indices_nonzero(pc.is_in(letters["topic"], value_set=topics)).to_pylist())

    def mentions_erased(self, letter: pa.Table) -> bool:
        """Return whether a token of a dead letter (REJECTED columns, one row) is the user_id of an erased user."""
        (row,) = letter.select(["key", "value", "headers", "detail"]).to_pylist()
        headers = [text for header in row["headers"] or () for text in (header["key"].encode(), header["value"])]
        texts = [row["key"], row["value"], (row["detail"] or "").encode(), *headers]
        return any(self.contains(token) for text in texts for token in tokenize_bytes(text or b""))

    def _rows(self) -> list[str]:
        files = data_files(self.lake.table("erasures"))
        tables = (read_rows("erasures", path, ["user_digest"]) for path in files)
        return [row for rows in tables for row in rows["user_digest"].to_pylist()]


def is_erased(settings: Settings, user_id: str) -> bool:
    """Return whether a user was erased, by the tombstones of the lake, if it exists, and those next to it."""
    entries = read_tombstones(settings.tombstones_file)
    if is_lake(settings.lake_root):
        entries |= lake_tombstones(settings.lake_root)
    digests = {entry for entry in entries if not is_link(entry)}
    return any(tombstone(user_id.encode(), key) in digests for key in keys_of(digests))


def open_tombstones(lake: Lake, settings: Settings) -> Tombstones:
    """Return the tombstones of a lake, already read."""
    events = lake.table("events")
    mapped = frozenset(topic for topic, source in topic_sources(settings).items() if source != CONTRACT)
    tombstones = Tombstones(lake, settings.contract, str(events.metadata().id), settings.tombstones_file, mapped)
    tombstones.read()
    tombstones.done = erasures_done(events)
    return tombstones
