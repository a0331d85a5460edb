"""What a power cut leaves of a log: files that were being written, and that the disk kept in part or not at all.

Every commit says in its first line how many actions follow. A last entry that has not all of them never counted: a
commit is acknowledged only once its entry is flushed, and each committer flushes the entry that it builds on. So it is
set aside, and its writer starts again from the version before. A torn entry below the last one did count, and the
library passes over it in silence: the table is not opened. A torn checkpoint is a copy of entries that are still
there, and is set aside too. Only a disk tears: an object is put whole, and a killed process leaves a whole entry or
none.
"""

import fcntl
import json
import logging
import os
from collections.abc import Generator, Sized
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptionError
from pipelines.lake.stores import is_remote

_ACTIONS = "karmalake_actions"
_CHECKPOINT = ".checkpoint.parquet"
_LOG = logging.getLogger(__name__)
_checked: dict[str, tuple[int, int]] = {}
"""By folder of a log, what tells it from another one there, and up to which version its entries are whole."""


def promised(*actions: Sized) -> dict[str, str]:
    """Return the metadata of a commit by which a torn entry is recognised."""
    return {_ACTIONS: str(sum(map(len, actions)))}


def set_torn_aside(folder: str, version: int | None = None) -> bool:
    """Rename the log entry of a version of a table, or the last one, if it is torn; return whether it was."""
    log = Path(folder, "_delta_log")
    if is_remote(folder) or not log.is_dir():
        return False
    entry = log / f"{version:020}.json" if version is not None else max(log.glob("[0-9]" * 20 + ".json"), default=None)
    return entry is not None and _set_aside(entry)


def set_torn_checkpoint_aside(folder: str) -> bool:
    """Rename the newest checkpoint of a table's log if it cannot be read; return whether it was."""
    log = Path(folder, "_delta_log")
    newest = None if is_remote(folder) else max(log.glob(f"[0-9]*{_CHECKPOINT}"), default=None)
    if newest is None or _is_parquet(newest):
        return False
    (log / "_last_checkpoint").unlink(missing_ok=True)
    newest.replace(newest.with_suffix(".torn"))
    _LOG.warning("a power cut tore the checkpoint %s: it is set aside, and the entries below it are read", newest)
    return True


def require_whole(folder: str, version: int) -> None:
    """Raise CorruptionError if an entry below `version` of a table's log, and above its checkpoint, is torn.

    A process looks at each entry once.
    """
    log = Path(folder, "_delta_log")
    if is_remote(folder):
        return
    place, (inode, upto) = str(log), _checked.get(str(log), (0, -1))
    names = range(upto + 1, version) if inode == log.stat().st_ino and upto <= version else _above_checkpoint(log)
    for number in names:
        if number < version and not _is_whole(log / f"{number:020}.json"):
            raise CorruptionError(
                f"the entry {number} of the log {log} is torn, and {version - number} later ones build on it: restore "
                f"the lake from a copy, or move the entries from {number} on out of the log and drain again: what they "
                "added is read again from the topic"
            )
    _checked[place] = (log.stat().st_ino, version)


def _above_checkpoint(log: Path) -> list[int]:
    newest = max(log.glob(f"[0-9]*{_CHECKPOINT}"), default=None)
    entries = (int(path.stem) for path in log.glob("[0-9]" * 20 + ".json"))
    return sorted(number for number in entries if newest is None or number > int(newest.name[:20]))


def _set_aside(entry: Path) -> bool:
    if _is_whole(entry):
        return False
    with _alone(entry.parent):
        if _is_whole(entry):  # another process has set it aside, and has committed since
            return True
        aside = entry.replace(entry.with_suffix(".torn"))
    _LOG.warning("a power cut tore the last entry of a log, which had not counted yet: it is set aside as %s", aside)
    return True


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Hold a lock that goes with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_whole(entry: Path) -> bool:
    """Return whether an entry is there whole; one that is not there, because a checkpoint took its place, is."""
    try:
        first, *rest = map(json.loads, entry.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return True
    except ValueError:  # no line, no JSON, no text
        return False
    actions = first.get("commitInfo", {}).get(_ACTIONS)
    return actions is None or len(rest) == int(actions)


def _is_parquet(path: Path) -> bool:
    try:
        pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        return False
    return True
