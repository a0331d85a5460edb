"""Staging: files and rows that are written before the commit that names them, and removed if that commit fails.

A killed process leaves them as orphans, which vacuum removes. So does a commit whose outcome is unknown.
"""

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipelines.best_effort import best_effort
from pipelines.errors import FencedError
from pipelines.lake.commit import ConcurrentCommitError
from pipelines.lake.files import name_of, remove_files
from pipelines.lake.table_files import list_files
from pipelines.lake.tables import Lake
from pipelines.lake.upkeep import replace_files

_ATTEMPTS = 20


@dataclass(slots=True)
class Staging:
    """What one attempt to commit a batch has written; `staging` creates it."""

    lake: Lake
    batch_id: str = ""
    tables: Collection[str] = ()
    """The tables, besides `events`, that the batch may have rows in."""
    files: Sequence[AddAction] = ()
    """The staged files of `events`."""

    def begin(self, batch_id: str, tables: Collection[str]) -> None:
        """Note which batch is about to be staged, and which tables besides `events` it writes to."""
        self.batch_id, self.tables, self.files = batch_id, tables, ()

    @contextmanager
    def committing(self) -> Generator[Sequence[AddAction]]:
        """Yield the files to be committed. They stay staged only if it is certain that they were not committed."""
        staged = self.batch_id, self.tables, self.files
        self.begin("", ())
        try:
            yield staged[2]
        except (ConcurrentCommitError, FencedError):
            self.batch_id, self.tables, self.files = staged
            raise

    def discard(self) -> None:
        """Remove what was staged; a failure is logged."""
        if self.batch_id:
            best_effort(self._remove, "removing what was staged")()
        self.begin("", ())

    def _remove(self) -> None:
        remove_files(self.lake.folder("events"), self.files)
        for name in self.tables:
            _remove_rows(self.lake, name, self.batch_id)


@contextmanager
def staging(lake: Lake) -> Generator[Staging]:
    """Yield a Staging, and remove at the end what was staged and not committed."""
    staged = Staging(lake)
    try:
        yield staged
    finally:
        staged.discard()


def _remove_rows(lake: Lake, name: str, batch_id: str) -> None:
    """Remove the file of an uncommitted batch from a table, unless it was merged with others."""
    for _ in range(_ATTEMPTS):
        table = lake.table(name)
        files = [file for file in list_files(table) if name_of(file.path) == batch_id]
        if not files:
            return
        with suppress(CommitFailedError):
            replace_files(table, files, [], {}, data_change=True)
