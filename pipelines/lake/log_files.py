"""The files of a Delta table's log: entries, and the checkpoints that replace the older ones.

Every commit and every look for a newer version lists the folder of the log, at about a microsecond a file. So the log
keeps a fixed number of entries, whatever its age. A reader that needs older ones (`Lake.read_log`) starts from the
files of the newest version instead.
"""

import json
import re
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow.fs as pa_fs
from deltalake import DeltaTable

from pipelines.lake.files import make_durable
from pipelines.lake.stores import is_remote, read_text, resolve_store

RETAINED_ENTRIES = 2_000
_FILE = re.compile(r"(?P<version>[0-9]{20})\.(?P<kind>json|checkpoint\.parquet)")


def table_folder(table: DeltaTable) -> str:
    """Return the folder or URI of a table."""
    uri = table.table_uri.rstrip("/")
    return uri if is_remote(uri) else unquote(uri.removeprefix("file://"))


def log_folder(table: DeltaTable) -> str:
    """Return the folder or URI of a table's log."""
    return f"{table_folder(table)}/_delta_log"


def flush_checkpoint(table: DeltaTable) -> None:
    """Flush the checkpoint of a handle's version to disk, and the file that names it."""
    folder = log_folder(table)
    make_durable([f"{folder}/{table.version():020}.checkpoint.parquet", f"{folder}/_last_checkpoint"])


def checkpoint_actions(table: DeltaTable) -> int:
    """Return how many actions the newest checkpoint of a table's log has; 0 without one."""
    try:
        return int(json.loads(read_text(f"{log_folder(table)}/_last_checkpoint"))["size"])
    except (OSError, ValueError, KeyError):  # it is a hint: other writers may leave it out, or a power cut tear it
        return 0


@dataclass(frozen=True, slots=True)
class LogFile:
    """An entry or a checkpoint of a log."""

    version: int
    name: str
    is_checkpoint: bool


def list_log(folder: str) -> list[LogFile]:
    """Return the entries and checkpoints in a log's folder or URI, by version."""
    store, path = resolve_store(folder)
    names = [info.base_name for info in store.get_file_info(pa_fs.FileSelector(path)) if info.is_file]
    found = [match for name in names if (match := _FILE.fullmatch(name))]
    return sorted(
        (LogFile(int(match["version"]), match[0], match["kind"] != "json") for match in found),
        key=lambda file: (file.version, file.name),
    )


def remove_old_entries(table: DeltaTable, retained: int = RETAINED_ENTRIES) -> int:
    """Remove the files of a log below both its newest checkpoint and its last `retained` versions; return their number.

    The oldest go first, so that a crash leaves a log without gaps.
    """
    folder = log_folder(table)
    files = list_log(folder)
    newest = max((file.version for file in files if file.is_checkpoint), default=0)
    below = min(newest, table.version() - retained)
    if below <= 0:
        return 0
    make_durable([f"{folder}/{newest:020}.checkpoint.parquet"])
    store, path = resolve_store(folder)
    old = [file for file in files if file.version < below]
    for file in old:
        store.delete_file(f"{path}/{file.name}")
    return len(old)
