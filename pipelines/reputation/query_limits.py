"""What the queries of an opened warehouse may use of the machine: memory, and disk for what does not fit into it.

DuckDB's own limits are four fifths of the memory and nine tenths of the disk, and it spills into the working directory.
"""

import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

import duckdb

from pipelines.settings import QueriesSettings

_SPILL = "queries-{}.tmp"
_ABANDONED_SECONDS = 86_400
"""A process that is killed leaves its spill folder; one that nothing was written to for this long is removed."""


def limit_queries(connection: duckdb.DuckDBPyConnection, folder: Path, limits: QueriesSettings) -> None:
    """Limit the memory and the spilled data of a connection and its cursors.

    folder: where the warehouse is. DuckDB makes a spill folder there when memory is used up, and removes it at the end.
    """
    _remove_abandoned(folder)
    connection.execute(f"SET memory_limit = '{100 * limits.max_memory_share:g}%'")
    connection.execute("SET temp_directory = ?", [str(folder / _SPILL.format(uuid.uuid4().hex))])
    connection.execute(f"SET max_temp_directory_size = '{limits.max_spill_bytes} bytes'")


def _remove_abandoned(folder: Path) -> None:
    for spill in folder.glob(_SPILL.format("*")):
        with suppress(OSError):  # another process removes it, too, or owns it
            newest = max(place.stat().st_mtime for place in (spill, *spill.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(spill)
