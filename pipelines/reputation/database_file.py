"""DuckDB files as files: one writer at a time, removed with all that belongs to them, published whole."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree

from pipelines.boundary.file_lock import exclusive_lock
from pipelines.errors import UsageError

_LOCK_SECONDS = 60.0


@contextmanager
def alone(path: Path) -> Generator[None]:
    """Hold the lock at `path`, which a crash releases; one process at a time.

    Raises UsageError, naming the holder, when another process keeps it for longer than a derivation takes.
    """
    with ExitStack() as held:
        try:
            held.enter_context(exclusive_lock(path, _LOCK_SECONDS))
        except TimeoutError as error:
            raise UsageError(
                f"{error}: it keeps {path.with_suffix('').name} up to date, as `karmalake stream` does; leave it to "
                "that process, or end it first"
            ) from None
        yield


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
