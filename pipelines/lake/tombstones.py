"""Who was erased: digests of user_ids, by which ingest drops what still comes of them (`erasable`).

A tombstone is `KEY:DIGEST`, the digest of a user_id under a key: it names no user, and can be compared in any lake. The
key is the id of the lake that the user was erased from first; a row of `erasures` without one is under its lake's own.
Tombstones are in that table and in a file beside the lake (`kept_tombstones.py`); each start of ingest completes either
by the other, so they outlive the lake. One is written before anything is removed. From the commit of `events` on that
is free of the user, ingest knows it: what was read before cannot commit any more without looking again (`fenced`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipelines.contract.decode import Decoded, keep
from pipelines.contract.values import parse_values
from pipelines.lake.commit import append_file
from pipelines.lake.files import read_file
from pipelines.lake.kept_tombstones import keep as keep_beside
from pipelines.lake.kept_tombstones import qualified, read_kept
from pipelines.lake.tables import ERASURES, Lake, data_files, erasures_done
from pipelines.lake.words import words_of_bytes
from pipelines.settings import ContractSettings, Settings

_DIGEST_BYTES = 32


def tombstone(user_id: bytes, key: str) -> str:
    """Return the tombstone of a user under a key: the key, and BLAKE2b of the user_id under it in hex."""
    return f"{key}:{blake2b(user_id, key=key.encode()[:64], digest_size=_DIGEST_BYTES).hexdigest()}"


def keys_of(tombstones: Iterable[str]) -> frozenset[str]:
    """Return the keys that tombstones are under: few, one for each lake that users were erased from first."""
    return frozenset(each.partition(":")[0] for each in tombstones)


@dataclass(frozen=True, slots=True)
class Spared:
    """A decoded batch without the erased, and the topic partition of each record that was dropped."""

    decoded: Decoded
    dropped: np.ndarray


@dataclass(slots=True)
class Tombstones:
    """The tombstones of a lake as far as they were read."""

    lake: Lake
    contract: ContractSettings
    lake_id: str
    file: Path
    """Where they are kept beside the lake."""
    digests: frozenset[str] = frozenset()
    keys: frozenset[str] = field(default_factory=frozenset[str])
    done: int = 0

    def catch_up(self, events: DeltaTable) -> None:
        """Know at least everybody whom the version of `events` (a handle) is free of."""
        if erasures_done(events) != self.done:
            self.read()
            self.done = erasures_done(events)

    def read(self) -> int:
        """Read all that are written, those of erasures under way too; return the number of rows of the table."""
        rows = self._rows()
        self.digests = frozenset(qualified(row, self.lake_id) for row in rows) | read_kept(self.file)
        self.keys = keys_of(self.digests)
        return len(rows)

    def add(self, digests: Collection[str] = ()) -> None:
        """Write tombstones, and those that only the table or only the file has, to where they are missing; durably."""
        stored = {qualified(row, self.lake_id) for row in self._rows()}
        everything = stored | read_kept(self.file) | set(digests)
        if missing := sorted(everything - stored):
            asked = datetime.now(UTC)
            rows = [{"user_digest": digest, "asked": asked} for digest in missing]
            append_file(self.lake, "erasures", pa.Table.from_pylist(rows, ERASURES), uuid4().hex)
        keep_beside(self.file, everything)
        self.read()

    def names(self, user_id: bytes) -> bool:
        """Return whether a user was erased."""
        return any(tombstone(user_id, key) in self.digests for key in self.keys)

    def spare(self, decoded: Decoded) -> Spared:
        """Leave out what is of erased users."""
        if not self.digests:
            return Spared(decoded, np.empty(0, np.int32))
        events = pc.invert(self.of_users(decoded.events["user_id"]))
        letters = pc.invert(self.of_letters(decoded.rejected))
        gone = [decoded.events.filter(pc.invert(events)), decoded.rejected.filter(pc.invert(letters))]
        kept = replace(
            decoded,
            events=keep(decoded.events, events),
            rejected=keep(decoded.rejected, letters),
            mis_keyed=pc.filter(decoded.mis_keyed, events),
        )
        return Spared(kept, np.concatenate([rows["topic_partition"].to_numpy() for rows in gone]))

    def of_users(self, user_ids: pa.ChunkedArray) -> pa.BooleanArray:
        """Return which of many user_ids (string or binary) are of erased users; null is nobody."""
        names = pc.unique(user_ids.cast(pa.binary()))
        erased = [name for name in names.to_pylist() if name is not None and self.names(name)]
        return pc.is_in(user_ids.cast(pa.binary()), value_set=pa.array(erased, pa.binary())).combine_chunks()

    def of_letters(self, letters: pa.Table) -> pa.BooleanArray:
        """Return which dead letters (REJECTED columns) are of erased users.

        By their key, or by what can be decoded; what cannot be decoded is theirs if a word of it is their user_id.
        """
        values, headers = (letters[name].combine_chunks() for name in ("value", "headers"))
        parsed = parse_values(values, self.contract, headers)
        named = pc.or_(self.of_users(letters["key"]), self.of_users(parsed.events["user_id"]))
        undecodable = np.zeros(len(letters), bool)
        for row in parsed.errors:
            undecodable[row] = self.stands_in(letters.slice(row, 1))
        return pc.or_(named, pa.array(undecodable))

    def stands_in(self, letter: pa.Table) -> bool:
        """Return whether a word of a dead letter (REJECTED columns, one row) is the user_id of an erased user."""
        (row,) = letter.select(["key", "value", "headers", "detail"]).to_pylist()
        headers = [text for header in row["headers"] or () for text in (header["key"].encode(), header["value"])]
        texts = [row["key"], row["value"], (row["detail"] or "").encode(), *headers]
        return any(self.names(word) for text in texts for word in words_of_bytes(text or b""))

    def _rows(self) -> list[str]:
        files = data_files(self.lake.table("erasures"))
        return [row for path in files for row in read_file(path, ["user_digest"])["user_digest"].to_pylist()]


def open_tombstones(lake: Lake, settings: Settings) -> Tombstones:
    """Return the tombstones of a lake, read."""
    events = lake.table("events")
    tombstones = Tombstones(lake, settings.contract, str(events.metadata().id), settings.tombstones_file)
    tombstones.read()
    tombstones.done = erasures_done(events)
    return tombstones
