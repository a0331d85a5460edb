"""Pseudonyms: what stands for an erased person's user_ids in other people's events (`erasable`).

A rating names its rater. The values of the metadata keys in `contract.personal_keys` are user_ids; those of an erased
person are replaced by one pseudonym, so counts by rater stay right. It is a function of the tombstone alone, so ingest
replaces names in later events in the same way, before deduplication: the same event read again is a duplicate.

In a dead letter, names are replaced in a bare Protobuf or JSON value. A dead letter whose value has a schema id, as
Avro has, cannot be written again and is removed (`Tombstones.match_dead_letters`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract import event_pb2

_DIGITS = 32
_JSON_TEXT = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")(?:(\s*+:\s*+)("[^"\\]*+(?:\\.[^"\\]*+)*+"))?')
"""A text of a valid JSON value, with the text that it names, if it is a key of one."""
PseudonymOf = Callable[[str], str | None]
"""Returns the pseudonym of the person whom a user_id names; None if that person was not erased."""


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


def pseudonyms_in(metadata: Mapping[str, str], keys: Sequence[str], pseudonym_of: PseudonymOf) -> dict[str, str]:
    """Return the pseudonyms by the personal keys of one event's metadata at which erased persons are named."""
    return {key: found for key in keys if key in metadata and (found := pseudonym_of(metadata[key]))}


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


def replace_in_value(value: bytes, form: str, keys: Sequence[str], pseudonym_of: PseudonymOf) -> bytes:
    """Replace names at personal keys in one decodable value; `form` is protobuf or json, others stay as they are."""
    match form:
        case "protobuf":
            return _replace_in_message(value, keys, pseudonym_of)
        case "json":
            return _replace_in_json(value, keys, pseudonym_of)
        case _:
            return value


def _replace_in_message(value: bytes, keys: Sequence[str], pseudonym_of: PseudonymOf) -> bytes:
    """Unknown fields remain."""
    message = event_pb2.Event.FromString(value)  # type: ignore[attr-defined]
    named = pseudonyms_in(message.metadata, keys, pseudonym_of)
    for key, replacement in named.items():
        message.metadata[key] = replacement
    return message.SerializeToString(deterministic=True) if named else value


def _replace_in_json(value: bytes, keys: Sequence[str], pseudonym_of: PseudonymOf) -> bytes:
    """Every other byte remains. Only texts are read: a number may have more digits than Python converts."""

    def renamed(found: re.Match[bytes]) -> bytes:
        key, colon, name = found.groups()
        replacement = pseudonym_of(json.loads(name)) if name and json.loads(key) in keys else None
        return found[0] if replacement is None else key + colon + b'"' + replacement.encode() + b'"'

    return _JSON_TEXT.sub(renamed, value)
