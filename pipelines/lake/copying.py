"""A lake copied to another place, a folder or an object store, and the copy read back.

The version that is copied is whole: `commits` is opened first, then `events`, then the other tables, so that the copy
never claims the record of a commit that it lacks, and has every row that belongs to a commit. `events` is written last,
and of every table the files before the log that names them. A copy that was killed is no lake, or one of an earlier
version; copying again continues. Files never change: what is there already is compared, not sent again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from deltalake import DeltaTable

from pipelines.errors import CorruptionError, UsageError
from pipelines.lake.files import make_durable
from pipelines.lake.log_files import KEPT_ENTRIES, list_log
from pipelines.lake.stores import absolute, ensure_folder_of, opened
from pipelines.lake.tables import TABLES, Lake, data_files

_CHUNK_BYTES = 4 * 1024 * 1024
_LOG = "_delta_log"
_OPENED = ("commits", *(name for name in TABLES if name != "commits"))
_WRITTEN = (*(name for name in TABLES if name != "events"), "events")


@dataclass(frozen=True, slots=True)
class Copied:
    """What is in the copy, each file compared byte by byte with the lake's."""

    version: int
    files: int
    size: int
    """Bytes."""
    sent: int
    """How many of the files were not there before."""


def copy_lake(lake: Lake, to: str, progress: Callable[[str], None] = lambda _: None) -> Copied:
    """Copy a lake to the folder or URI `to`, or go on with it, and compare every file of the copy with its original.

    Ingest may go on meanwhile: what it adds is not in the copy. Raises UsageError when another lake is there, or one
    that has gone its own way since it was copied; CorruptionError when a file of the copy is not what was written.
    """
    target = Lake(absolute(to))
    handles = {name: lake.table(name) for name in _OPENED}
    versions = {name: handle.version() for name, handle in handles.items()}
    _refuse_others(lake, target, versions)
    count = size = sent = 0
    for name in _WRITTEN:
        folder = lake.folder(name)
        data = [path.removeprefix(f"{folder}/") for path in data_files(handles[name])]
        for path in [*data, *_log_files(folder, versions[name])]:
            was_there, length = _copy(f"{folder}/{path}", f"{target.folder(name)}/{path}")
            count, size, sent = count + 1, size + length, sent + (not was_there)
            progress(path)
    if {name: target.table(name).version() for name in TABLES} != versions:
        raise CorruptionError(f"the copy in {target.root} does not open at the version that was copied: copy again")
    return Copied(versions["events"], count, size, sent)


def _refuse_others(lake: Lake, target: Lake, versions: dict[str, int]) -> None:
    if target.root == lake.root:
        raise UsageError(f"{target.root} is the lake itself: name another place")
    for name in TABLES:
        if not DeltaTable.is_deltatable(target.folder(name)):
            continue
        if target.table(name).metadata().id != lake.table(name).metadata().id:
            raise UsageError(f"{target.root} holds another lake: name a place where there is none")
        if target.table(name).version() > versions[name]:
            raise UsageError(
                f"the copy in {target.root} was written to since: a lake lives in one place, decide on one"
            )


def _log_files(folder: str, version: int) -> list[str]:
    """Return the log of a table up to a version: the newest checkpoint, then entries in order.

    Entries that compaction may remove meanwhile are left out: they are below the checkpoint.
    """
    files = [file for file in list_log(f"{folder}/{_LOG}") if file.version <= version]
    checkpoints = [file for file in files if file.is_checkpoint]
    newest = max((file.version for file in checkpoints), default=0)
    first = min(newest, version - KEPT_ENTRIES // 2)
    entries = [file for file in files if not file.is_checkpoint and file.version >= first]
    return [f"{_LOG}/{file.name}" for file in [*checkpoints[-1:], *entries]]


def _copy(source: str, target: str) -> tuple[bool, int]:
    """Copy one file unless it is there; return whether it was, and its size, once both are known to be the same."""
    was_there = _is_file(target)
    if not was_there:
        _send(source, target)
    original, copy = _digest(source), _digest(target)
    if original != copy:
        hint = "it is not a copy of this lake: name another place" if was_there else "copy again"
        raise CorruptionError(f"{target} differs from {source}: {hint}")
    return was_there, original[1]


def _is_file(place: str) -> bool:
    store, path = opened(place)
    return store.get_file_info(path).is_file


def _send(source: str, target: str) -> None:
    """Write a file that is there whole or not at all."""
    ensure_folder_of(target)
    (store, path), (other, to) = opened(source), opened(target)
    with store.open_input_stream(path) as reading, other.open_output_stream(f"{to}.part") as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            writing.write(chunk)
    other.move(f"{to}.part", to)
    make_durable([target])


def _digest(place: str) -> tuple[bytes, int]:
    """Return the digest and the size of a file."""
    store, path = opened(place)
    digest, size = sha256(), 0
    with store.open_input_stream(path) as reading:
        while chunk := reading.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.digest(), size
