"""The events that erasures and withdrawals removed, for indexes, caches and the warehouse, which remove just these.

Dedup indexes and histories remove the event_ids; the warehouse recomputes their users, and others at the same
completion keys. The events are in a file beside the files of `events` that no version lists as data: the entry of the
commit names it. An event in which an erasure replaced names is in that file as it was, and in a second one as it is
now: for what reads this, it was removed, and another one came in its place. The vacuum that deletes the replaced files
deletes it, too; whatever has not read it by then is rebuilt. Here and in what reads this, an event is erased if either
of the two removed it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake.transaction import AddAction

from pipelines.contract.schema import EVENT
from pipelines.lake.files import conform, read_file, write_file
from pipelines.lake.tables import ERASURES_DONE, WITHDRAWALS_DONE, Lake, Snapshot

ERASED_EVENTS = EVENT
_FILE = "karmalake_erased_events"
"""The member of `commitInfo` that holds the path of the file."""
_REPLACEMENTS = "karmalake_replacements"
"""The member of `commitInfo` that holds the path of the second file."""
_REMOVALS = {ERASURES_DONE, WITHDRAWALS_DONE}
"""The application transactions of commits that may remove events."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What erasures and withdrawals did to `events`."""

    removed: pa.Table
    """The events that are gone, replaced ones included, with the columns that were asked for."""
    replacements: pa.Table
    """ERASED_EVENTS: what stands in the place of some of them."""


def write_erased_events(lake: Lake, events: pa.Table) -> list[AddAction]:
    """Write events (ERASED_EVENTS) as one durable file; return an action that describes it, never to be committed."""
    return write_file(lake.folder("events"), events, uuid4().hex) if len(events) else []


def erased_events_metadata(removed: list[AddAction], replacements: list[AddAction]) -> dict[str, str]:
    """Return the metadata with which a commit names the files of the events that it removed, and of new ones."""
    return {name: files[0].path for name, files in ((_FILE, removed), (_REPLACEMENTS, replacements)) if files}


def read_removal(lake: Lake, actions: list[dict[str, Any]], columns: list[str]) -> Removal | None:
    """Return what one commit of `events` removed, with these columns; None if it is not one of a removal.

    Raises FileNotFoundError when a vacuum has removed it, LookupError when a release without this file committed.
    """
    if not any(action.get("txn", {}).get("appId") in _REMOVALS for action in actions):
        return None
    named = next((action["commitInfo"] for action in actions if _FILE in action.get("commitInfo", {})), None)
    if named is not None:
        replacements = _read(lake, named.get(_REPLACEMENTS), ERASED_EVENTS.names)
        return Removal(_read(lake, named[_FILE], columns), replacements)
    if any("remove" in action for action in actions):
        raise LookupError("an earlier release committed this erasure: it did not keep the events that it removed")
    return Removal(_select(columns).empty_table(), ERASED_EVENTS.empty_table())


def removals_since(lake: Lake, version: int, upto: int) -> Iterator[Removal]:
    """Yield each removal with version < its version <= upto, with its event_ids; raises like `read_removal`."""
    for _, actions in lake.read_log(version, upto):
        if (removal := read_removal(lake, actions, ["event_id"])) is not None:
            yield removal


def removal_since(snapshot: Snapshot, version: int, erasures: int) -> Removal:
    """Return the events (ERASED_EVENTS) removed since an earlier version, which had `erasures` applied.

    Reads the log only if the snapshot has another number. Raises like `read_removal`, and LookupError when the
    snapshot does not follow that version.
    """
    if erasures == snapshot.erasures:
        return Removal(ERASED_EVENTS.empty_table(), ERASED_EVENTS.empty_table())
    lake = Lake(snapshot.root)
    log = lake.read_log(version, snapshot.version)
    entries = (read_removal(lake, actions, ERASED_EVENTS.names) for _, actions in log)
    if found := [each for each in entries if each is not None]:
        removed, replacements = ([each.removed for each in found], [each.replacements for each in found])
        return Removal(pa.concat_tables(removed), pa.concat_tables(replacements))
    raise LookupError(f"no erasure follows version {version}: the lake was restored from an older copy")


def _read(lake: Lake, path: str | None, columns: list[str]) -> pa.Table:
    if path is None:
        return _select(columns).empty_table()
    return conform(read_file(f"{lake.folder('events')}/{path}", columns), _select(columns))


def _select(columns: list[str]) -> pa.Schema:
    return pa.schema([ERASED_EVENTS.field(name) for name in columns])
