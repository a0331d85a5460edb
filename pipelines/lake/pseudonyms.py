"""Pseudonyms: what stands for an erased person's user_ids in other people's events (`erasable`).

A rating names its rater. The values of the metadata keys in `contract.personal_keys` are user_ids; those of an erased
person are replaced by one pseudonym, so counts by rater stay right. It is a function of the tombstone alone, so ingest
replaces names in later events in the same way, before deduplication: the same event read again is a duplicate.

In a dead letter, names are replaced in a bare Protobuf or JSON value (`contract/names.py`). A dead letter whose value
has a schema id, as Avro has, cannot be written again and is removed (`Tombstones.match_dead_letters`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.names import PseudonymOf

_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Replaced:
    """Rows in which names were replaced."""

    rows: pa.Table
    changed: pa.BooleanArray
    """Which of the rows are not as they were."""

    @property
    def count(self) -> int:
        """The number of rows that changed."""
        return pc.sum(self.changed).as_py() or 0


def unchanged(rows: pa.Table) -> Replaced:
    """Return rows without a replacement."""
    return Replaced(rows, pa.array(np.zeros(len(rows), bool)))


def pseudonym(person: str) -> str:
    """Return the pseudonym of a person, by the tombstone of the current user_id."""
    return f"erased-{person.rpartition(':')[2][:_DIGITS]}"


def replace_names(events: pa.Table, keys: Sequence[str], pseudonym_of: PseudonymOf) -> Replaced:
    """Replace the user_ids of erased persons at personal keys; `events` needs a column `metadata` only.

    Takes some microseconds for each distinct value at these keys; nothing is copied where there is none to replace.
    """
    metadata = events["metadata"].combine_chunks()
    personal = pc.is_in(metadata.keys, value_set=pa.array(keys, pa.string()))
    known = _pseudonyms(metadata.items.filter(personal), pseudonym_of)
    if not known:
        return unchanged(events)
    which = pc.index_in(metadata.items, value_set=pa.array(list(known), pa.string()))
    named = pc.and_(personal, pc.is_valid(which))
    items = pc.if_else(named, pa.array(list(known.values()), pa.string()).take(which), metadata.items)
    column = events.schema.get_field_index("metadata")
    rows = events.set_column(column, events.schema.field(column), _with_items(metadata, items))
    return Replaced(rows, _rows_of(metadata, named))


def _pseudonyms(names: pa.Array, pseudonym_of: PseudonymOf) -> dict[str, str]:
    found = ((name, pseudonym_of(name)) for name in pc.unique(names).to_pylist() if name is not None)
    return {name: replacement for name, replacement in found if replacement is not None}


def _with_items(metadata: pa.MapArray, items: pa.Array) -> pa.MapArray:
    offsets = pa.array(metadata.offsets.to_numpy())
    mask = metadata.is_null() if metadata.null_count else None
    return pa.MapArray.from_arrays(offsets, metadata.keys, items, type=metadata.type, mask=mask)


def _rows_of(metadata: pa.MapArray, entries: pa.BooleanArray) -> pa.BooleanArray:
    """Return which rows have one of these entries."""
    offsets = metadata.offsets.to_numpy()
    numbers = np.flatnonzero(entries.to_numpy(zero_copy_only=False))
    numbers = numbers[(numbers >= offsets[0]) & (numbers < offsets[-1])]
    rows = np.zeros(len(metadata), bool)
    rows[np.searchsorted(offsets, numbers, "right") - 1] = True
    return pa.array(rows)
