"""Torn writes: files of a log that were being written when the power failed, and that the disk has in part.

Every commit states in its first line how many actions follow. If the last entry has fewer, it never counted: a commit
is acknowledged only once its entry is flushed, and each committer flushes the entry that it builds on. The entry is
quarantined (renamed to `*.torn`), and its writer starts again from the version before. A torn entry below the last one
did count, and the library skips it silently: the table is not opened. A torn checkpoint is a copy of entries that
still exist, so it is quarantined, too. Only local disks tear writes: an object is put whole, and a killed process
leaves a whole entry or none.
"""

import logging
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.boundary.file_lock import exclusive_lock
from pipelines.errors import CorruptionError
from pipelines.lake.log_files import checksum_file, parse_entry
from pipelines.lake.stores import checksum_of, is_remote

_CHECKPOINT = ".checkpoint.parquet"
_CHECKSUM_CHARACTERS = 8
_LOG = logging.getLogger(__name__)
_checked: dict[str, tuple[int, int]] = {}
"""By folder of a log: its inode, which distinguishes it from another log at that path, and the version up to which its
entries are intact."""
_compared: dict[str, int] = {}
"""By checkpoint: its inode, if it had its checksum."""


def quarantine_torn_entry(folder: str, version: int | None = None) -> bool:
    """Quarantine the log entry of a version of a table, or the last entry, if it is torn; return whether it was."""
    log = Path(folder, "_delta_log")
    if is_remote(folder) or not log.is_dir():
        return False
    entry = log / f"{version:020}.json" if version is not None else max(log.glob("[0-9]" * 20 + ".json"), default=None)
    return entry is not None and _quarantine(entry)


def quarantine_changed_checkpoint(folder: str, version: int) -> bool:
    """Quarantine the checkpoint of a version if it is the newest and has changed since; return whether that was so.

    A process looks at each once.
    """
    checkpoint = Path(folder, "_delta_log", f"{version:020}{_CHECKPOINT}")
    try:
        inode = checkpoint.stat().st_ino
    except FileNotFoundError:  # there is none, or another process has just removed or quarantined it
        return False
    if _compared.get(str(checkpoint)) == inode:
        return False
    if not _has_checksum(checkpoint):
        return quarantine_torn_checkpoint(folder)
    _compared[str(checkpoint)] = inode
    return False


def quarantine_torn_checkpoint(folder: str) -> bool:
    """Quarantine the newest checkpoint of a table's log if it cannot be read; return whether that was so."""
    log = Path(folder, "_delta_log")
    newest = None if is_remote(folder) else max(log.glob(f"[0-9]*{_CHECKPOINT}"), default=None)
    if newest is None or (_has_checksum(newest) and _is_parquet(newest)):
        return False
    (log / "_last_checkpoint").unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # another process has quarantined it
        newest.replace(newest.with_suffix(".torn"))
    checksum_file(str(newest)).unlink(missing_ok=True)
    _LOG.warning(
        "the checkpoint %s is torn or has changed on disk: it is set aside, and the entries below it are read", newest
    )
    return True


def require_intact_entries(folder: str, version: int) -> None:
    """Raise CorruptionError if an entry of a table's log is torn, below `version` and above the newest checkpoint.

    A process checks each entry once.
    """
    log = Path(folder, "_delta_log")
    if is_remote(folder):
        return
    path, (inode, checked) = str(log), _checked.get(str(log), (0, -1))
    is_known = inode == log.stat().st_ino and checked <= version
    for number in range(checked + 1, version) if is_known else _above_checkpoint(log):
        if number < version and not _is_intact(log / f"{number:020}.json"):
            without = "drain the topic from its start into a new data_dir"
            if log.parent.name == "events":  # it has the checkpoints, so that what other tables lose is not read again
                without = (
                    f"move the entries from {number} on out of the log and drain again, which reads what they added "
                    "from the topic"
                )
            raise CorruptionError(
                f"the entry {number} of the log {log} is torn, and {version - number} later ones build on it: restore "
                f"the lake from a copy, or {without}"
            )
    _checked[path] = (log.stat().st_ino, version)


def _above_checkpoint(log: Path) -> list[int]:
    newest = max(log.glob(f"[0-9]*{_CHECKPOINT}"), default=None)
    entries = (int(path.stem) for path in log.glob("[0-9]" * 20 + ".json"))
    return sorted(number for number in entries if newest is None or number > int(newest.name[:20]))


def _quarantine(entry: Path) -> bool:
    if _is_intact(entry):
        return False
    with exclusive_lock(entry.parent):
        if _is_intact(entry):  # another process quarantined it, and has committed in its place since
            return True
        quarantined = entry.replace(entry.with_suffix(".torn"))
    _LOG.warning(
        "a power cut tore the last entry of a log, which was never acknowledged: it is set aside as %s", quarantined
    )
    return True


def _is_intact(entry: Path) -> bool:
    """Return whether an entry is whole; a missing one counts as intact, since a checkpoint has replaced it.

    Raises CorruptionError for one that says something else than when it was written: that is no torn one.
    """
    try:
        parse_entry(entry.read_text(encoding="utf-8"), str(entry))
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def _has_checksum(checkpoint: Path) -> bool:
    """Return whether a checkpoint has its checksum; those of other engines, and of earlier releases, have none.

    Nor has one that was made again since, as by another engine or before a crash, or whose checksum is being written.
    """
    file = checksum_file(str(checkpoint))
    try:
        written = file.read_text(errors="replace")
        if len(written) < _CHECKSUM_CHARACTERS or file.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns:
            return True
        return written == f"{checksum_of(str(checkpoint)):08x}"
    except FileNotFoundError:
        return True


def _is_parquet(path: Path) -> bool:
    try:
        pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False
    return True
