"""The event_ids that an erasure removed from `events`, for the dedup indexes, which forget exactly those.

They are in a file beside the files of `events`, which no version names as data: the entry of the erasure's commit names
it. It holds what the replaced files hold, and the same vacuum removes it. An index that is behind by more than that is
rebuilt.
"""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake.transaction import AddAction

from pipelines.lake.files import read_file, write_file
from pipelines.lake.tables import ERASURES_DONE, Lake

_ERASED_IDS = "karmalake_erased_ids"
"""The member of `commitInfo` that holds the path of the file."""
_IDS = pa.schema([("event_id", pa.string())])


def write_erased_ids(lake: Lake, event_ids: pa.ChunkedArray) -> list[AddAction]:
    """Write the event_ids as one durable file; return an action that describes it, never to be committed."""
    return write_file(lake.folder("events"), pa.table([event_ids], schema=_IDS), uuid4().hex)


def erased_ids_metadata(files: list[AddAction]) -> dict[str, str]:
    """Return the metadata by which the commit of an erasure names the file of its event_ids."""
    return {_ERASED_IDS: files[0].path} if files else {}


def read_erasure(lake: Lake, actions: list[dict[str, Any]]) -> pa.ChunkedArray | None:
    """Return the event_ids that one commit of `events` erased; None if it is not the commit of an erasure.

    Raises FileNotFoundError when a vacuum has removed them, LookupError when a release without this file committed.
    """
    if not any(action.get("txn", {}).get("appId") == ERASURES_DONE for action in actions):
        return None
    for action in actions:
        if path := action.get("commitInfo", {}).get(_ERASED_IDS):
            return read_file(f"{lake.folder('events')}/{path}")["event_id"]
    if any("remove" in action for action in actions):
        raise LookupError("an earlier release committed this erasure: it did not keep which event_ids it removed")
    return pa.chunked_array([], pa.string())


def erased_since(lake: Lake, version: int, upto: int) -> Iterator[pa.ChunkedArray]:
    """Yield the event_ids of each erasure with version < its version <= upto; raises like `read_erasure`."""
    for _, actions in lake.read_log(version, upto):
        if (event_ids := read_erasure(lake, actions)) is not None:
            yield event_ids
