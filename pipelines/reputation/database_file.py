"""DuckDB files on disk: locking out other writers, removing a file with its log and spill, publishing it whole."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copyfile, rmtree

import duckdb

from pipelines.boundary.file_lock import exclusive_lock
from pipelines.boundary.locked_sql import literal
from pipelines.errors import UsageError
from pipelines.reputation.sql import one_row

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


def log_file(file: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return file.with_name(f"{file.name}.wal")


def publish_copy(file: Path, path: Path) -> None:
    """Replace the file at `path` by a copy of a finished file, atomically and durably; readers keep what they opened.

    A crash leaves a partial copy beside it: `remove_copy` removes it.
    """
    with _replacing(path) as copy:
        copyfile(file, copy)


def publish_rows(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Replace the file at `path`, like `publish_copy`, by the rows of the database of a connection.

    The bytes of deleted rows, which stay in free blocks of a database, are not copied.
    """
    (name,) = one_row(connection.execute("SELECT current_database()"))
    with _replacing(path) as copy:
        connection.execute(f"ATTACH {literal(str(copy))} AS next")
        connection.execute(f'COPY FROM DATABASE "{name}" TO next')
        connection.execute("CHECKPOINT next")
        connection.execute("DETACH next")


def remove_copy(path: Path) -> None:
    """Remove what a killed publication left beside `path`."""
    remove_database(_next_file(path))


@contextmanager
def _replacing(path: Path) -> Generator[Path]:
    """Yield the path of a file to write, which then replaces the one at `path`."""
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
