"""Mentions: the user_ids of erased users in records of other users. They are counted, never changed.

A comment may name anyone. Such an event belongs to another user, and only the values of `contract.personal_keys` are
known to be user_ids: these an erasure replaces (`pseudonyms.py`), and leaves free text. Counting reads all events and
takes some microseconds for each distinct text.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.boundary.text import amount
from pipelines.lake.tables import Lake, data_files, read_rows
from pipelines.lake.tokens import tokenize_text
from pipelines.lake.tombstones import Tombstones

_MAX_KEYS = 10
_NOTES = {
    "commits": ["note"],
    "fates": ["note"],
    "policies": ["operator", "why", "policy"],
    "merged_users": ["operator", "why"],
}
"""What operators wrote, by table; a policy may name users."""
_COLUMNS = ["event_id", "user_id", "action_type", "metadata"]


@dataclass(frozen=True, slots=True)
class Mentions:
    """How many rows of users who were not erased contain the user_id of an erased user as a token."""

    events: int = 0
    dead_letters: int = 0
    conflicts: int = 0
    keys: Mapping[str, int] | None = None
    """The number of mentioning texts by their place in events and conflicts, the most frequent: a metadata key,
    `event_id`, `action_type`."""

    notes: int = 0
    """The number of notes, reasons and operators of commands that mention one."""

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self.events or self.dead_letters or self.conflicts or self.notes)

    def __str__(self) -> str:
        """Return the counts as part of a sentence."""
        keys = ", ".join(f"{key} {count:,}" for key, count in (self.keys or {}).items())
        events, conflicts = amount(self.events, "event"), amount(self.conflicts, "conflict and", "conflicts and")
        notes = f" and {amount(self.notes, 'note')} of operators" if self.notes else ""
        letters = amount(self.dead_letters, "dead letter of other users", "dead letters of other users")
        return f"{events}, {conflicts} {letters}{f' ({keys})' if keys else ''}{notes}"


def count_mentions(lake: Lake, tombstones: Tombstones) -> Mentions:
    """Count mentions of erased users; reads all events, conflicts and dead letters."""
    if not tombstones.digests:
        return Mentions()
    keys: Counter[str] = Counter()
    rows = dict.fromkeys(("events", "conflicts"), 0)
    for name in rows:
        for path in data_files(lake.table(name)):
            rows[name] += _count_in_events(read_rows(name, path, _COLUMNS), tombstones, keys)
    letters = sum(
        _count_in_dead_letters(read_rows("dead_letters", path), tombstones)
        for path in data_files(lake.table("dead_letters"))
    )
    notes = sum(_count_in_notes(lake, name, tombstones) for name in _NOTES)
    return Mentions(rows["events"], letters, rows["conflicts"], dict(keys.most_common(_MAX_KEYS)), notes)


def _count_in_notes(lake: Lake, name: str, tombstones: Tombstones) -> int:
    tables = (read_rows(name, path, _NOTES[name]) for path in data_files(lake.table(name)))
    texts = (rows[column].combine_chunks() for rows in tables for column in _NOTES[name])
    return sum(pc.sum(_mentioning(each, tombstones)).as_py() or 0 for each in texts)


def _count_in_events(events: pa.Table, tombstones: Tombstones, keys: Counter[str]) -> int:
    others = events.filter(pc.invert(tombstones.match_users(events["user_id"])))
    named = np.zeros(len(others), bool)
    for name in ("event_id", "action_type"):
        found = _mentioning(others[name].combine_chunks(), tombstones).to_numpy(zero_copy_only=False)
        named |= found
        keys.update({name: int(found.sum())} if found.any() else {})
    metadata = others["metadata"].combine_chunks()
    lengths = np.diff(metadata.offsets.to_numpy())
    texts = pc.or_(_mentioning(metadata.items, tombstones), _mentioning(metadata.keys, tombstones))
    named[np.repeat(np.arange(len(others)), lengths)[texts.to_numpy(zero_copy_only=False)]] = True
    keys.update(f"metadata {_display_key(key, tombstones)}" for key in metadata.keys.filter(texts).to_pylist())
    return int(named.sum())


def _mentioning(texts: pa.Array, tombstones: Tombstones) -> pa.BooleanArray:
    found = [text for text in pc.unique(texts).to_pylist() if text is not None and _mentions(text, tombstones)]
    return pc.is_in(texts, value_set=pa.array(found, pa.string()))


def _mentions(text: str, tombstones: Tombstones) -> bool:
    return any(map(tombstones.contains, tokenize_text(text.encode())))


def _display_key(key: str, tombstones: Tombstones) -> str:
    return "under a key that names the user" if _mentions(key, tombstones) else key


def _count_in_dead_letters(letters: pa.Table, tombstones: Tombstones) -> int:
    erased = tombstones.match_dead_letters(letters).to_pylist()
    return sum(
        tombstones.mentions_erased(letters.slice(row, 1)) for row, is_erased in enumerate(erased) if not is_erased
    )
