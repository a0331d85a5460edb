"""The end of a log after a power cut: an entry that was being written, and that the disk kept in part or not at all.

Every commit says in its first line how many actions follow. An entry that has not all of them never counted: a commit
is acknowledged only once its entry is flushed (`make_durable`), and no later one is written before. So it is set aside,
and whoever made it starts again from the version before. Only a disk tears: an object is put whole, and a process that
is killed leaves a whole entry or none.
"""

import fcntl
import json
import logging
import os
from collections.abc import Generator, Sized
from contextlib import contextmanager
from pathlib import Path

from pipelines.lake.stores import is_remote

_ACTIONS = "karmalake_actions"
_LOG = logging.getLogger(__name__)


def promised(*actions: Sized) -> dict[str, str]:
    """Return the metadata of a commit by which a torn entry is recognised."""
    return {_ACTIONS: str(sum(map(len, actions)))}


def set_torn_aside(folder: str, version: int | None = None) -> bool:
    """Rename the log entry of a version of a table, or the last one, if it is torn; return whether it was."""
    log = Path(folder, "_delta_log")
    if is_remote(folder) or not log.is_dir():
        return False
    entry = log / f"{version:020}.json" if version is not None else max(log.glob("[0-9]" * 20 + ".json"), default=None)
    if entry is None or _is_whole(entry):
        return False
    with _alone(log):
        if _is_whole(entry):  # somebody else has set it aside, and has committed since
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
