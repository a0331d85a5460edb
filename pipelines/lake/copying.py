"""Copy a lake to a folder or an object store, and verify the copy by reading it back.

The copy is consistent: `commits` is opened first, then `events`, then the other tables, so the copy has no record of a
commit that it lacks, and every row that belongs to a commit. `events` is written last, and the files of every table
before the log that names them. A killed copy is not a lake yet, or is one of an earlier version; copying again
continues. Files are immutable: existing ones are compared, not sent again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from pipelines.errors import CorruptionError, UsageError
from pipelines.lake.files import compare_checksums, make_durable
from pipelines.lake.log_files import RETAINED_ENTRIES, list_log
from pipelines.lake.stores import absolute, ensure_parent_folder, read_chunks, resolve_store
from pipelines.lake.tables import TABLES, Lake, data_files, is_table

_LOG = "_delta_log"
_OPEN_ORDER = ("commits", *(name for name in TABLES if name != "commits"))
_WRITE_ORDER = (*(name for name in TABLES if name != "events"), "events")


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What the copy contains; each file has the digest of its original."""

    version: int
    files: int
    size: int
    """Bytes."""
    sent: int
    """How many of the files the target did not have before."""


def copy_lake(lake: Lake, to: str, progress: Callable[[str], None] = lambda _: None) -> CopyResult:
    """Copy a lake to the folder or URI `to`, or continue a copy, and compare every file with its original.

    Calls `progress` with the path of each file. Ingest may run meanwhile: what it adds is not in the copy. Raises
    UsageError when the target is another lake or a copy that was written to since, CorruptionError when a file of the
    lake is damaged, or one of the copy differs from its original.
    """
    target = Lake(absolute(to))
    handles = {name: lake.table(name) for name in _OPEN_ORDER}
    versions = {name: handle.version() for name, handle in handles.items()}
    _require_own_copy(lake, target, versions)
    count = size = sent = 0
    for name in _WRITE_ORDER:
        folder = lake.folder(name)
        data = [path.removeprefix(f"{folder}/") for path in data_files(handles[name])]
        for path in [*data, *_log_files(folder, versions[name])]:
            compare_checksums([f"{folder}/{path}"])
            existed, length = _copy(f"{folder}/{path}", f"{target.folder(name)}/{path}")
            count, size, sent = count + 1, size + length, sent + (not existed)
            progress(path)
    if {name: target.table(name).version() for name in TABLES} != versions:
        raise CorruptionError(f"the copy in {target.root} does not open at the copied version: copy again")
    return CopyResult(versions["events"], count, size, sent)


def _require_own_copy(lake: Lake, target: Lake, versions: dict[str, int]) -> None:
    if target.root == lake.root:
        raise UsageError(f"{target.root} is the lake itself: name another folder or URI")
    for name in TABLES:
        if not is_table(target.folder(name)):
            continue
        if target.table(name).metadata().id != lake.table(name).metadata().id:
            raise UsageError(f"{target.root} holds another lake: name a folder or URI without one")
        if target.table(name).version() > versions[name]:
            raise UsageError(
                f"the copy in {target.root} was written to since it was copied: ingest into one of the two "
                "only, and name a folder or URI without a lake to copy that one"
            )


def _log_files(folder: str, version: int) -> list[str]:
    """Return the log files of a table up to a version: the newest checkpoint, then entries in order.

    Old entries, which a compaction may remove meanwhile, are left out: the checkpoint replaces them.
    """
    files = [file for file in list_log(f"{folder}/{_LOG}") if file.version <= version]
    checkpoints = [file for file in files if file.is_checkpoint]
    newest = max((file.version for file in checkpoints), default=0)
    first = min(newest, version - RETAINED_ENTRIES // 2)
    entries = [file for file in files if not file.is_checkpoint and file.version >= first]
    return [f"{_LOG}/{file.name}" for file in [*checkpoints[-1:], *entries]]


def _copy(source: str, target: str) -> tuple[bool, int]:
    """Copy one file unless it exists, and compare the two; return whether it existed, and its size in bytes."""
    existed = _is_file(target)
    if not existed:
        _send(source, target)
    original, copy = _digest(source), _digest(target)
    if original != copy:
        hint = "it is not a copy of this lake: name another folder or URI" if existed else "copy again"
        raise CorruptionError(f"{target} differs from {source}: {hint}")
    return existed, original[1]


def _is_file(location: str) -> bool:
    store, path = resolve_store(location)
    return store.get_file_info(path).is_file


def _send(source: str, target: str) -> None:
    """Copy a file atomically: a crash leaves no target, or a `.part` file next to it."""
    ensure_parent_folder(target)
    store, path = resolve_store(target)
    with store.open_output_stream(f"{path}.part") as writing:
        for chunk in read_chunks(source):
            writing.write(chunk)
    store.move(f"{path}.part", path)
    make_durable([target])


def _digest(location: str) -> tuple[bytes, int]:
    """Return the SHA-256 digest and the size in bytes of a file."""
    digest, size = sha256(), 0
    for chunk in read_chunks(location):
        digest.update(chunk)
        size += len(chunk)
    return digest.digest(), size
