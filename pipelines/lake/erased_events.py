"""The events that erasures and withdrawals removed, for indexes, caches and the warehouse, which remove just these.

Dedup indexes and histories remove the event_ids; the warehouse recomputes their users, and others at the same
completion keys. The events are in a file beside the files of `events` that no version lists as data: the entry of the
commit names it. The vacuum that deletes the replaced files deletes it, too; whatever has not read it by then is
rebuilt. Here and in what reads this, an event is erased if either of the two removed it.
"""

from collections.abc import Iterator
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
_REMOVALS = {ERASURES_DONE, WITHDRAWALS_DONE}
"""The application transactions of commits that may remove events."""


def write_erased_events(lake: Lake, events: pa.Table) -> list[AddAction]:
    """Write events (ERASED_EVENTS) as one durable file; return an action that describes it, never to be committed."""
    return write_file(lake.folder("events"), events, uuid4().hex)


def erased_events_metadata(files: list[AddAction]) -> dict[str, str]:
    """Return the metadata with which a commit names the file of the events that it removed."""
    return {_FILE: files[0].path} if files else {}


def read_erased_ids(lake: Lake, actions: list[dict[str, Any]]) -> pa.ChunkedArray | None:
    """Return the event_ids that one commit of `events` erased; None if it is not one of a removal.

    Raises FileNotFoundError when a vacuum has removed them, LookupError when a release without this file committed.
    """
    erased = _read_erasure(lake, actions, ["event_id"])
    return None if erased is None else erased["event_id"]


def erased_ids_since(lake: Lake, version: int, upto: int) -> Iterator[pa.ChunkedArray]:
    """Yield the event_ids of each removal with version < its version <= upto; raises like `read_erased_ids`."""
    for _, actions in lake.read_log(version, upto):
        if (event_ids := read_erased_ids(lake, actions)) is not None:
            yield event_ids


def erased_events_since(snapshot: Snapshot, version: int, erasures: int) -> pa.Table:
    """Return the events (ERASED_EVENTS) erased since an earlier version, which had `erasures` applied.

    Reads the log only if the snapshot has another number. Raises like `read_erased_ids`, and LookupError when the
    snapshot does not follow that version.
    """
    if erasures == snapshot.erasures:
        return ERASED_EVENTS.empty_table()
    lake = Lake(snapshot.root)
    log = lake.read_log(version, snapshot.version)
    entries = (_read_erasure(lake, actions, ERASED_EVENTS.names) for _, actions in log)
    if erased := [rows for rows in entries if rows is not None]:
        return pa.concat_tables(erased)
    raise LookupError(f"no erasure follows version {version}: the lake was restored from an older copy")


def _read_erasure(lake: Lake, actions: list[dict[str, Any]], columns: list[str]) -> pa.Table | None:
    if not any(action.get("txn", {}).get("appId") in _REMOVALS for action in actions):
        return None
    for action in actions:
        if path := action.get("commitInfo", {}).get(_FILE):
            return conform(read_file(f"{lake.folder('events')}/{path}", columns), _select(columns))
    if any("remove" in action for action in actions):
        raise LookupError("an earlier release committed this erasure: it did not keep the events that it removed")
    return _select(columns).empty_table()


def _select(columns: list[str]) -> pa.Schema:
    return pa.schema([ERASED_EVENTS.field(name) for name in columns])
