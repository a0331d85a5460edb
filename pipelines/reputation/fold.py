"""A new base in a thread, beside refreshes: from the warehouse that was published when it began (`base.py`)."""

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import duckdb

from pipelines.reputation.base import write_base
from pipelines.reputation.draft_tables import write_rows_beside
from pipelines.reputation.warehouse import Access, attach


class Fold:
    """A base that a thread writes. Not for use by several threads at once."""

    def __init__(self, warehouse: Path, base: Path) -> None:
        self.base = base
        self._connection = attach(warehouse, Access(all_files=True))  # before another one replaces it
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
        """End the thread, and what it is doing."""
        while not self._written.done():
            self._connection.interrupt()
            wait([self._written], timeout=0.1)
        self._thread.shutdown()
        self._connection.close()

    def _write(self) -> None:
        self._limit(self._connection)
        write_base(self._connection, self.base)
        with duckdb.connect() as connection:
            self._limit(connection)
            write_rows_beside(connection, self.base)

    def _limit(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Leave a processor and most of the memory to refreshes; spill beside the base."""
        connection.execute("SET threads = 1")
        connection.execute("SET memory_limit = '20%'")
        connection.execute("SET temp_directory = ?", [f"{self.base}.tmp"])
