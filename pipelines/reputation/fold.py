"""A new base, written in a thread while refreshes continue: the rows of the warehouse as published last (`base.py`)."""

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import duckdb

from pipelines.boundary.database import connect
from pipelines.reputation.base import remove_base, write_base
from pipelines.reputation.draft_tables import write_rows_beside
from pipelines.reputation.query_limits import limit_memory
from pipelines.reputation.warehouse_file import Access, attach

_MEMORY_SHARE = 0.2


class Fold:
    """A base that a thread writes; nothing remains of one that fails. Not for use by several threads at once."""

    def __init__(self, warehouse: Path, base: Path) -> None:
        self.base = base
        self._warehouse = attach(warehouse, Access(all_files=True))  # before another one replaces it
        self._beside = connect(arrow_large_buffer_size=True)
        self._thread = ThreadPoolExecutor(1, "fold")
        self._written = self._thread.submit(self._write)

    def is_done(self) -> bool:
        """Return whether the base is written, or has failed."""
        return self._written.done()

    def result(self) -> Path:
        """Return the path of the base, with files beside it. Raises duckdb.Error or OSError, as for a full disk."""
        self._written.result()
        return self.base

    def close(self) -> None:
        """Interrupt the thread, and end it."""
        while not self._written.done():
            for connection in (self._warehouse, self._beside):
                connection.interrupt()
            wait([self._written], timeout=0.1)
        self._thread.shutdown()
        for connection in (self._warehouse, self._beside):
            connection.close()

    def _write(self) -> None:
        try:
            for connection in (self._warehouse, self._beside):
                self._limit(connection)
            write_base(self._warehouse, self.base)
            write_rows_beside(self._beside, self.base)
        except BaseException:
            remove_base(self.base)
            raise

    def _limit(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Leave a processor and most of the memory to refreshes; spill beside the base."""
        connection.execute("SET threads = 1")
        limit_memory(connection, _MEMORY_SHARE)
        connection.execute("SET temp_directory = ?", [f"{self.base}.tmp"])
