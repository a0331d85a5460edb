"""What the queries of an opened warehouse may use of the machine: memory, and disk for what does not fit into it.

DuckDB's own limits are four fifths of the memory and nine tenths of the disk, and it spills into the working directory.
"""

import atexit
import os
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

import duckdb

from pipelines.settings import QueriesSettings

_SPILL = "queries-{}.tmp"
_ABANDONED_SECONDS = 86_400
"""A process that is killed leaves its spill folder; one whose rows were written longer ago is removed."""


def spill_beside(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Let a connection and its cursors spill into the folder of the warehouse, or a temporary one if that is read-only.

    DuckDB makes a spill folder there when memory is used up, and removes it at the end.
    """
    if os.access(folder, os.W_OK):
        _remove_abandoned(folder)
    else:
        folder = _private_folder()
    connection.execute("SET temp_directory = ?", [str(folder / _SPILL.format(uuid.uuid4().hex))])


def limit_queries(connection: duckdb.DuckDBPyConnection, limits: QueriesSettings) -> None:
    """Limit the memory and the spilled data of a connection and its cursors."""
    limit_memory(connection, limits.max_memory_share)
    connection.execute("SET max_temp_directory_size = ?", [f"{limits.max_spill_bytes} bytes"])


def limit_memory(connection: duckdb.DuckDBPyConnection, share: float) -> None:
    """Limit the memory of a connection and its cursors to a share of that of the machine, or of its control group."""
    connection.execute("SET memory_limit = ?", [f"{100 * share:g}%"])


def spilled_folders(folder: Path) -> list[Path]:
    """Return the spill folders beside a warehouse that hold rows: of running queries, or of killed processes."""
    return sorted({rows.parent for rows in folder.glob(f"{_SPILL.format('*')}/*storage*")})


def _remove_abandoned(folder: Path) -> None:
    for spill in spilled_folders(folder):
        with suppress(OSError):  # another process removes it, too, or owns it
            newest = max((rows.stat().st_mtime for rows in spill.glob("*storage*")), default=time.time())
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(spill)


@cache
def _private_folder() -> Path:
    """Return a folder of this process that no other user can read, which is removed at the end."""
    folder = tempfile.mkdtemp(prefix="karmalake-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
