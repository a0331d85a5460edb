"""The file of a draft and its base: opened, continued, folded into a new base, and published whole.

A publication runs in a thread while refreshes continue, which keep rows in memory: it writes to the file what had
changed when it began (`unwritten.py`), with its trends (`day_sums.py`), and copies it. From one CHECKPOINT to the next,
DuckDB changes no block that the draft's file refers to.
"""

import logging
from collections.abc import Generator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from shutil import copyfile

import duckdb

from pipelines.boundary.database import connect
from pipelines.errors import KarmalakeError, UsageError
from pipelines.formats import WAREHOUSE
from pipelines.lake.tables import Snapshot
from pipelines.reputation.base import (
    attach_base,
    base_folder,
    create_changes,
    new_base,
    published_base,
    remove_older_bases,
    remove_other_bases,
    write_base,
)
from pipelines.reputation.database_file import checkpoint, publish_copy, remove_copy, remove_database
from pipelines.reputation.draft_tables import DraftTables, Finish
from pipelines.reputation.fold import Fold
from pipelines.reputation.lake_paths import look_in, relative_to
from pipelines.reputation.lake_views import create_lake_views
from pipelines.reputation.query_limits import limit_memory
from pipelines.reputation.refresh_steps import Counts, set_threads_for
from pipelines.reputation.unwritten import write_info
from pipelines.reputation.warehouse_file import stored_format

_LOG = logging.getLogger(__name__)
_FULL_DISK = "max_temp_directory_size"
"""DuckDB reports a disk too full to spill to as an error of memory that names this."""
_FOLD_THRESHOLD = 0.5
"""If the rows of more than this share of the users in the base are superseded, a publication writes a new base."""
_NO_NEW_BASE = "no new base of the warehouse was written, a later publication tries again: %s"


class DraftFile:
    """The file that becomes the next warehouse at `path`. Not for use by several threads at once."""

    def __init__(self, path: Path, copying: Executor, max_memory_share: float) -> None:
        self.path, self._copying, self._max_memory_share = path, copying, max_memory_share
        self._file = path.with_name(f"{path.name}.draft")
        self._folder = base_folder(path)
        self._publication: Future[None] | None = None
        self._folding: Fold | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._tables: DraftTables | None = None
        self.has_erased = False
        """Whether the base, and free blocks of the file, have rows of users who were erased."""

    @property
    def tables(self) -> DraftTables:
        """The tables of the draft. Raises UsageError before it is begun or continued."""
        if self._tables is None:
            raise UsageError(f"the draft of {self.path} is empty: rebuild or refresh it first")
        return self._tables

    def is_begun(self) -> bool:
        """Return whether there are tables."""
        return self._tables is not None

    def has_failed(self) -> bool:
        """Return whether tables could not be written, or files were removed, so that none could be published."""
        tables = self._tables
        return tables is not None and (tables.has_failed() or not (self._file.exists() and tables.base.exists()))

    def open_new_base(self) -> tuple[Path, duckdb.DuckDBPyConnection]:
        """Return a base to write, and a connection to it."""
        base = new_base(self._folder)
        return base, self._open(base)

    def continue_from(self, base: Path, counts: Counts) -> None:
        """Continue with a base that has all rows."""
        self._close()
        connection = self._open(self._file)
        create_changes(connection, base, counts)
        self._tables = DraftTables(connection, base)
        write_info(connection, self._tables.info)  # with the views of its moment

    def continue_published(self) -> str | None:
        """Continue with a copy of the published warehouse; return why that is impossible."""
        if not self.path.exists():
            return "there is no warehouse to continue from"
        try:
            copyfile(self.path, self._file)
            connection = self._open(self._file)
            found, writer = stored_format(connection)
            if found != WAREHOUSE.number:
                return f"the published warehouse has format {found}, written by karmalake {writer}"
            self._tables = DraftTables(connection, attach_base(connection, self.path))
        except duckdb.Error:
            return "the published warehouse is damaged, or from another version of karmalake"
        return None

    def fold_many_changes(self) -> None:
        """Write a new base now if there are many changes to it."""
        if self.tables.changed_share() > _FOLD_THRESHOLD:
            self._write_base()

    def start_publication(self, snapshot: Snapshot) -> "Future[None]":
        """Publish the file as it is now, with the views of a snapshot, in a thread; the previous one has ended.

        What has the rows of erased users is not published: it has a new base first. The result raises its error.
        """
        self.tables.settle()
        self._fold()
        written = self._begin_writing(partial(self._finish, snapshot))
        self._publication = self._copying.submit(
            self._publish, written, self.tables.base.name, may_fold=self._folding is None
        )
        return self._publication

    def finish_publication(self) -> None:
        """Wait for the publication in progress; its error is in the result of `start_publication`."""
        if self._publication is not None:
            wait([self._publication])

    def discard(self) -> None:
        """Remove the file, and what a crash left beside the published warehouse."""
        self.finish_publication()  # closing a database writes into its file
        self._stop_fold()
        self._close()
        self.has_erased = False
        remove_copy(self.path)
        with suppress(duckdb.Error):  # of a damaged warehouse, which the next publication replaces
            remove_other_bases(self._folder, published_base(self.path))

    @contextmanager
    def explained(self) -> Generator[None]:
        """Raise UsageError for too little memory."""
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            if _FULL_DISK in str(error):
                raise
            raise UsageError(
                "the rebuild or refresh needs more memory than reputation.max_memory_share allows "
                f"({100 * self._max_memory_share:g} %): raise it, or give the machine or control group more memory"
            ) from error

    def _begin_writing(self, finish: Finish) -> "Future[float]":
        """Write the draft as it is now, in the thread of publications; then call `finish`."""
        return self.tables.begin_writing(self._copying, finish, begins_newer=self._folding is None)

    def _finish(self, snapshot: Snapshot, connection: duckdb.DuckDBPyConnection) -> None:
        create_lake_views(connection, relative_to(self.path.parent, snapshot))
        checkpoint(connection)

    def _publish(self, written: "Future[float]", base: str, *, may_fold: bool) -> None:
        with self.explained():
            changed_share = written.result()
        publish_copy(self._file, self.path)
        remove_older_bases(self._folder, base)
        if may_fold and changed_share > _FOLD_THRESHOLD:
            self._begin_fold()

    def _begin_fold(self) -> None:
        """Begin a new base, if the published warehouse can be read: without one, the publication is complete, too."""
        try:
            self._folding = Fold(self.path, new_base(self._folder))
        except (KarmalakeError, duckdb.Error, OSError) as error:
            _LOG.warning(_NO_NEW_BASE, error)

    def _fold(self) -> None:
        """Continue with a new base: one without erased users, written now, or one that a thread has written."""
        if self.has_erased:
            self._write_base()
        elif self._folding is not None and self._folding.is_done():
            self._adopt(self._folding)
            self._stop_fold()

    def _adopt(self, folding: Fold) -> None:
        try:
            base = folding.result()
        except (duckdb.Error, OSError) as error:
            _LOG.warning(_NO_NEW_BASE, error)
        else:
            self.tables.adopt(base)

    def _write_base(self) -> None:
        """Write a base with the rows as they are now, and continue without changes to it, in a new file."""
        self._stop_fold()
        self._begin_writing(lambda _: None).result()
        base, counts, connection = new_base(self._folder), self.tables.counts, self.tables.connection
        set_threads_for(connection, counts.users)
        write_base(connection, base)
        self.continue_from(base, counts)
        self.has_erased = False

    def _stop_fold(self) -> None:
        if self._folding is not None:
            self._folding.close()
            self._folding = None

    def _open(self, file: Path) -> duckdb.DuckDBPyConnection:
        """Open the draft's file, or a base to write. What exceeds its share of the memory spills beside it.

        Its Arrow tables may have columns of more than 2 GiB.
        Only a publication needs a complete file, so there is no checkpoint before it, nor during its copy.
        """
        connection = self._connection = connect(file, arrow_large_buffer_size=True)
        limit_memory(connection, self._max_memory_share)
        connection.execute("SET temp_directory = ?", [f"{self._file}.tmp"])
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET checkpoint_threshold = '1TB'")
        look_in(self.path.parent, connection)
        return connection

    def _close(self) -> None:
        if self._tables is not None:
            self._tables.close()
        if self._connection is not None:
            self._connection.close()
        self._tables = self._connection = None
        remove_database(self._file)
