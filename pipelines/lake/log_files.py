"""The files of a Delta table's log: entries, and the checkpoints that replace the older ones.

Every commit and every look for a newer version lists the folder of the log, at about a microsecond a file. So the log
keeps a fixed number of entries, whatever its age. A reader that needs older ones (`Lake.read_log`) starts from the
files of the newest version instead.
"""

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import CorruptionError, one_line
from pipelines.lake.files import make_durable
from pipelines.lake.stores import (
    checksum_of,
    is_remote,
    read_text,
    require_object_store,
    resolve_store,
    translate_store_errors,
)

RETAINED_ENTRIES = 2_000
_OWN = "karmalake"
"""The beginning of all members of `commitInfo` that are ours."""
_ACTION_COUNT, _CHECKSUM = "karmalake_actions", "karmalake_checksum"
_FACTS = {
    "add": ("path", "partitionValues", "size", "modificationTime", "dataChange", "stats"),
    "remove": ("path", "partitionValues", "deletionTimestamp", "dataChange"),
    "txn": ("appId", "version"),
}
"""What the checksum of an entry covers of each action, besides our members."""
_ACTIONS = {"commitInfo", "protocol", "metaData", "add", "remove", "txn", "cdc", "domainMetadata"}
_UNESCAPED = re.compile(r"[\w./=-]+", re.ASCII)
"""A path that the library writes as it is: all of ours."""
_FILE = re.compile(r"(?P<version>[0-9]{20})\.(?P<kind>json|checkpoint\.parquet)")


def table_folder(table: DeltaTable) -> str:
    """Return the folder or URI of a table."""
    return unquote(table.table_uri.rstrip("/").removeprefix("file://"))


def log_folder(table: DeltaTable) -> str:
    """Return the folder or URI of a table's log."""
    return f"{table_folder(table)}/_delta_log"


def entry_metadata(
    actions: Sequence[AddAction | RemoveAction], transactions: Mapping[str, int], metadata: dict[str, str]
) -> dict[str, str]:
    """Return the metadata of a commit, with what lets readers detect a torn entry, and one that has changed since.

    That is how many actions it has, and a checksum of what they say.
    """
    own = {_ACTION_COUNT: str(len(actions) + len(transactions))} | metadata
    set_by = [{"txn": {"appId": app_id, "version": version}} for app_id, version in transactions.items()]
    return own | {_CHECKSUM: _checksum([*map(_as_written, actions), *set_by], own)}


def _as_written(action: AddAction | RemoveAction) -> dict[str, Any]:
    """Return an action as its entry has it."""
    facts = {"path": action.path, "partitionValues": action.partition_values, "dataChange": action.data_change}
    if isinstance(action, RemoveAction):
        return {"remove": facts | {"deletionTimestamp": action.deletion_timestamp}}
    return {"add": facts | {"size": action.size, "modificationTime": action.modification_time, "stats": action.stats}}


def _checksum(actions: Iterable[Mapping[str, Any]], own: Mapping[str, str]) -> str:
    facts = [
        json.dumps([kind, *(_fact(name, action[kind].get(name)) for name in names)], sort_keys=True)
        for action in actions
        for kind, names in _FACTS.items()
        if kind in action
    ]
    return f"{zlib.crc32(json.dumps([sorted(facts), own], sort_keys=True).encode()):08x}"


def _fact(name: str, value: Any) -> Any:
    """Return a value as it is both before and after the library wrote it, which escapes paths of other engines."""
    if name == "path" and not _UNESCAPED.fullmatch(value or ""):
        return None
    return value or None


def parse_entry(text: str, location: str) -> list[dict[str, Any]]:
    """Return the actions of an entry, one JSON object per line, without null members.

    Only a line feed ends a line: the library writes other line separators within a text as they are. Raises ValueError
    for other text, and if it has fewer or more actions than its first line says, CorruptionError if these say something
    else than its checksum.
    """
    lines = [json.loads(line) for line in text.split("\n") if line]
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise ValueError("it is not one JSON object per line")
    actions = [{name: value for name, value in line.items() if value is not None} for line in lines]
    info = actions[0].get("commitInfo", {})
    count, checksum = info.get(_ACTION_COUNT), info.get(_CHECKSUM)
    if count is not None and len(actions) - 1 != int(count):
        raise ValueError(f"it has {len(actions) - 1} of {count} actions")
    own = {name: value for name, value in info.items() if name.startswith(_OWN) and name != _CHECKSUM}
    is_other = bool(lines[0]) and _ACTIONS.isdisjoint(lines[0])  # commitInfo is covered by nothing else
    if is_other or checksum not in {None, _checksum(actions, own)}:
        raise CorruptionError(
            f"the entry {location} of a log has changed since it was written: restore it, or the lake, from a copy"
        )
    return actions


def read_entry(location: str) -> list[dict[str, Any]]:
    """Return the actions of an entry at a path or URI.

    Raises FileNotFoundError if it does not exist, TransientError when an object store does not answer, CorruptionError
    if it is no entry.
    """
    with translate_store_errors(location):
        text = read_text(location)
    try:
        return parse_entry(text, location)
    except ValueError as error:
        require_object_store(location)
        raise CorruptionError(
            f"the entry {location} of a log is torn or not one ({one_line(error)}): restore the lake from a copy"
        ) from error


def flush_checkpoint(table: DeltaTable) -> None:
    """Flush the checkpoint of a handle's version to disk, with its checksum beside it, and the file that names it."""
    folder = log_folder(table)
    checkpoint = f"{folder}/{table.version():020}.checkpoint.parquet"
    made = [checkpoint, f"{folder}/_last_checkpoint"]
    if not is_remote(folder):
        checksum_file(checkpoint).write_text(f"{checksum_of(checkpoint):08x}")
        made.append(str(checksum_file(checkpoint)))
    make_durable(made)


def checksum_file(checkpoint: str) -> Path:
    """Return the path of the checksum of a local checkpoint."""
    return Path(checkpoint).with_suffix(".checksum")


def last_checkpoint(table: DeltaTable) -> tuple[int, int]:
    """Return version and number of actions of the newest checkpoint of a table's log; (0, 0) without one."""
    try:
        newest = json.loads(read_text(f"{log_folder(table)}/_last_checkpoint"))
        return int(newest["version"]), max(0, int(newest["size"]))
    except (OSError, ValueError, KeyError, TypeError):  # a hint: others may leave it out, or a power cut tear it
        return 0, 0


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


def read_checkpoint(folder: str, columns: list[str], upto: int | None = None) -> tuple[int, pa.Table] | None:
    """Return the version of a log's newest checkpoint, up to a version, and columns of its actions; None without one.

    A column that it does not have is left out. Raises FileNotFoundError when another process has removed it meanwhile,
    TransientError when an object store does not answer, CorruptionError when it is torn.
    """
    with translate_store_errors(folder):
        files = [file for file in list_log(folder) if upto is None or file.version <= upto]
    checkpoints = [file for file in files if file.is_checkpoint]
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    store, path = resolve_store(f"{folder}/{newest.name}")
    try:
        with translate_store_errors(folder):
            return newest.version, pq.ParquetFile(path, filesystem=store).read(columns)
    except pa.ArrowException as error:
        raise CorruptionError(
            f"the checkpoint {folder}/{newest.name} of a log cannot be read ({one_line(error)}): restore the lake from "
            "a copy"
        ) from error


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
        if file.is_checkpoint and not is_remote(folder):
            checksum_file(f"{path}/{file.name}").unlink(missing_ok=True)
    return len(old)
