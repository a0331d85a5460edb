"""Who was erased: digests of user_ids, by which ingest drops what still comes of them (`erasable`).

A tombstone is a digest under the lake's own id, so it names nobody, and means nothing in another lake. It is written
before anything is removed. From the commit of `events` on that is free of the user, ingest knows it: what was read
before cannot commit any more without looking again (`fenced`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipelines.contract.decode import Decoded, keep
from pipelines.contract.values import parse_values
from pipelines.lake.files import read_file
from pipelines.lake.tables import Lake, data_files, erasures_done
from pipelines.settings import ContractSettings

_DIGEST_BYTES = 32


def user_digest(user_id: bytes, lake_id: str) -> str:
    """Return the tombstone of a user: BLAKE2b of the user_id under the id of the table of events, in hex."""
    return blake2b(user_id, key=lake_id.encode(), digest_size=_DIGEST_BYTES).hexdigest()


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
    digests: frozenset[str] = frozenset()
    done: int = 0

    def catch_up(self, events: DeltaTable) -> None:
        """Know at least everybody whom the version of `events` (a handle) is free of."""
        if erasures_done(events) != self.done:
            self.read()
            self.done = erasures_done(events)

    def read(self) -> int:
        """Read all that are written, those of erasures under way too; return the number of rows."""
        rows = [
            digest
            for path in data_files(self.lake.table("erasures"))
            for digest in read_file(path, ["user_digest"])["user_digest"].to_pylist()
        ]
        self.digests = frozenset(rows)
        return len(rows)

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
        erased = [name for name in names.to_pylist() if name is not None and self._is_erased(name)]
        return pc.is_in(user_ids.cast(pa.binary()), value_set=pa.array(erased, pa.binary())).combine_chunks()

    def of_letters(self, letters: pa.Table) -> pa.BooleanArray:
        """Return which dead letters (REJECTED columns) are of erased users: by their key, or by what can be decoded."""
        values, headers = (letters[name].combine_chunks() for name in ("value", "headers"))
        by_value = self.of_users(parse_values(values, self.contract, headers).events["user_id"])
        return pc.or_(self.of_users(letters["key"]), by_value)

    def _is_erased(self, user_id: bytes) -> bool:
        return user_digest(user_id, self.lake_id) in self.digests


def open_tombstones(lake: Lake, contract: ContractSettings) -> Tombstones:
    """Return the tombstones of a lake, read."""
    events = lake.table("events")
    tombstones = Tombstones(lake, contract, str(events.metadata().id))
    tombstones.catch_up(events)
    return tombstones
