"""DuckDB files as files: one writer at a time, removed with everything that belongs to them, published whole."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree

import duckdb

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


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Generator[None]:
    """Run the block in a transaction: commit at its end, roll back on any exception."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def replace_durably(file: Path, path: Path) -> None:
    """Move a finished file to `path`, replacing the file there, atomically and durably."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
    file.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
