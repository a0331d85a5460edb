"""The files of a Delta table's log: entries, and the checkpoints that shorten the way through them.

Every commit and every look for a newer version lists the folder of the log, at about a microsecond a file. So the log
keeps a fixed number of entries, whatever its age. What catches up from older ones (`Lake.log`) starts from the files
of the newest version instead.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow.fs as pa_fs
from deltalake import DeltaTable

from pipelines.lake.files import make_durable
from pipelines.lake.stores import is_remote, opened

KEPT_ENTRIES = 2_000
_FILE = re.compile(r"(?P<version>[0-9]{20})\.(?P<kind>json|checkpoint\.parquet)")


def log_folder(table: DeltaTable) -> str:
    """Return the folder or URI that holds the log of a table."""
    uri = table.table_uri.rstrip("/")
    return f"{uri if is_remote(uri) else unquote(uri.removeprefix('file://'))}/_delta_log"


def flush_checkpoint(table: DeltaTable) -> None:
    """Flush the checkpoint that was written of a handle's version, and the file that names it."""
    folder = log_folder(table)
    make_durable([f"{folder}/{table.version():020}.checkpoint.parquet", f"{folder}/_last_checkpoint"])


@dataclass(frozen=True, slots=True)
class LogFile:
    """An entry of a log, or a checkpoint of it."""

    version: int
    name: str
    is_checkpoint: bool


def list_log(folder: str) -> list[LogFile]:
    """Return the entries and checkpoints in the folder or URI of a log, by version."""
    store, place = opened(folder)
    names = [info.base_name for info in store.get_file_info(pa_fs.FileSelector(place)) if info.is_file]
    found = [match for name in names if (match := _FILE.fullmatch(name))]
    return sorted(
        (LogFile(int(match["version"]), match[0], match["kind"] != "json") for match in found),
        key=lambda file: (file.version, file.name),
    )


def remove_old_entries(table: DeltaTable, kept: int = KEPT_ENTRIES) -> int:
    """Remove the files of a log that are below its newest checkpoint and the last `kept` versions; return their number.

    A crash leaves some of them: the oldest go first, so that what is left has no gap.
    """
    folder = log_folder(table)
    files = list_log(folder)
    newest = max((file.version for file in files if file.is_checkpoint), default=0)
    below = min(newest, table.version() - kept)
    if below <= 0:
        return 0
    make_durable([f"{folder}/{newest:020}.checkpoint.parquet"])
    store, place = opened(folder)
    old = [file for file in files if file.version < below]
    for file in old:
        store.delete_file(f"{place}/{file.name}")
    return len(old)
