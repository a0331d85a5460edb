"""DuckDB files on disk: locking out other writers, removing a file with its log and spill, publishing it whole."""

import os
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copyfile, rmtree

import duckdb

from pipelines.boundary.file_lock import exclusive_lock
from pipelines.errors import UsageError

_LOCK_SECONDS = 60.0
_RETRY_SECONDS = 0.01
_STATEMENT_SECONDS = 600.0
"""Longer than any statement of a refresh takes."""
_OLDER_TRANSACTION = "other write transactions"
"""DuckDB calls them so, whether they write or not."""


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
    log_file(file).unlink(missing_ok=True)
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


def checkpoint(connection: duckdb.DuckDBPyConnection) -> None:
    """Write everything that is committed to the file itself, beside other connections that only read it.

    DuckDB refuses while a transaction is open that began before a table or view was last replaced, so this waits for
    the statements of others. They must not wait for it. DuckDB's FORCE CHECKPOINT would let their next ones wait.

    Raises TransactionException if one does not end: it was left open.
    """
    deadline = time.monotonic() + _STATEMENT_SECONDS
    while True:
        try:
            connection.execute("CHECKPOINT")
        except duckdb.TransactionException as error:
            if _OLDER_TRANSACTION not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def log_file(file: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return file.with_name(f"{file.name}.wal")


def publish_copy(file: Path, path: Path) -> None:
    """Replace the file at `path` by a copy of a finished file, atomically and durably; readers keep what they opened.

    A crash leaves a partial copy, like `replacing`.
    """
    with replacing(path) as copy:
        copyfile(file, copy)


def remove_copy(path: Path) -> None:
    """Remove what a killed publication left beside `path`."""
    remove_database(_next_file(path))


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield the path of a file to write, which then replaces the one at `path`, atomically and durably.

    After an error nothing remains of it; a crash leaves it: `remove_copy` removes it.
    """
    remove_copy(path)
    try:
        yield _next_file(path)
        replace_durably(_next_file(path), path)
    finally:
        remove_copy(path)


def _next_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


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
