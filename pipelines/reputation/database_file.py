"""DuckDB files as files: one writer at a time, removed with all that belongs to them, published whole."""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from pipelines.errors import UsageError

_LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.05


@contextmanager
def alone(path: Path) -> Generator[None]:
    """Hold the lock at `path`, which a crash releases; one process at a time.

    Raises UsageError, naming the holder, when another process keeps it for longer than a derivation takes.
    """
    with path.open("a+") as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(lock.fileno()):
            if time.monotonic() > deadline:
                lock.seek(0)
                raise UsageError(
                    f"process {lock.read().strip()} is keeping {path.with_suffix('').name} up to date, such as "
                    "`karmalake stream` does: leave it to that process, or end it first"
                )
            time.sleep(_POLL_SECONDS)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock at `path` now."""
    if not path.exists():
        return False
    with path.open("a+") as lock:
        return not _locked(lock.fileno())


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove(file: Path) -> None:
    """Remove a database with its write-ahead log and spilled data."""
    file.unlink(missing_ok=True)
    file.with_name(f"{file.name}.wal").unlink(missing_ok=True)
    rmtree(f"{file}.tmp", ignore_errors=True)


def put_in_place(file: Path, path: Path) -> None:
    """Put a finished file in the place of the published one, durably."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
    file.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
