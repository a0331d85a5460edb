"""DuckDB files as files: one writer at a time, removed with everything that belongs to them, published whole."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copyfile, rmtree

from pipelines.boundary.file_lock import exclusive_lock
from pipelines.errors import UsageError

_LOCK_SECONDS = 60.0


@contextmanager
def writer_lock(path: Path) -> Generator[None]:
    """Hold the exclusive lock at `path`; a crash releases it.

    Raises UsageError, naming the holder, when another process holds it for longer than a derivation takes.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(path, _LOCK_SECONDS))
        except TimeoutError as error:
            raise UsageError(
                f"{error}: it keeps {path.with_suffix('').name} up to date, as `karmalake stream` does; leave it to "
                "that process, or stop that process first"
            ) from None
        yield


def remove_database(file: Path) -> None:
    """Remove a database with its write-ahead log and spilled data."""
    file.unlink(missing_ok=True)
    file.with_name(f"{file.name}.wal").unlink(missing_ok=True)
    rmtree(f"{file}.tmp", ignore_errors=True)


def publish_copy(file: Path, path: Path) -> None:
    """Replace the file at `path` by a copy of a finished file, atomically and durably; readers keep what they opened.

    A crash leaves a partial copy beside it: `remove_copy` removes it.
    """
    try:
        copyfile(file, _next_file(path))
        _replace_durably(_next_file(path), path)
    finally:
        remove_copy(path)


def remove_copy(path: Path) -> None:
    """Remove what a killed `publish_copy` left beside `path`."""
    _next_file(path).unlink(missing_ok=True)


def _next_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def _replace_durably(file: Path, path: Path) -> None:
    """Move a finished file to `path`, replacing the file there, atomically and durably."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
    file.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
