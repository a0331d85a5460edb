"""What is written before the commit that names it, and removed at once when no commit will.

A process that is killed leaves it, as orphans that vacuum removes. So does a commit whose outcome is not known.
"""

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipelines.best_effort import best_effort
from pipelines.errors import FencedError
from pipelines.lake.commit import OvertakenError
from pipelines.lake.files import remove_files
from pipelines.lake.tables import Lake
from pipelines.lake.upkeep import list_files, replace_files

_ATTEMPTS = 20


@dataclass(slots=True)
class Staging:
    """What one attempt to commit a batch has written; `staging` makes it."""

    lake: Lake
    batch_id: str = ""
    tables: Collection[str] = ()
    """Besides `events`, those that the batch may have rows in."""
    files: Sequence[AddAction] = ()
    """Of `events`."""

    def begin(self, batch_id: str, tables: Collection[str]) -> None:
        """Take note of what is going to be written."""
        self.batch_id, self.tables, self.files = batch_id, tables, ()

    @contextmanager
    def committing(self) -> Generator[Sequence[AddAction]]:
        """Yield the files to be committed; they are kept, come what may, unless it is known that they were not."""
        kept = self.batch_id, self.tables, self.files
        self.begin("", ())
        try:
            yield kept[2]
        except (OvertakenError, FencedError):
            self.batch_id, self.tables, self.files = kept
            raise

    def discard(self) -> None:
        """Remove what was written; a failure is logged."""
        if self.batch_id:
            best_effort(self._remove, "removing what was staged")()
        self.begin("", ())

    def _remove(self) -> None:
        remove_files(self.lake.folder("events"), self.files)
        for name in self.tables:
            _withdraw(self.lake, name, f"{self.batch_id}.parquet")


@contextmanager
def staging(lake: Lake) -> Generator[Staging]:
    """Yield a place to note what is staged; leaving it removes what was staged and not committed."""
    staged = Staging(lake)
    try:
        yield staged
    finally:
        staged.discard()


def _withdraw(lake: Lake, name: str, path: str) -> None:
    """Take the rows of a batch that is not committed out of a table, unless its file was merged with others."""
    for _ in range(_ATTEMPTS):
        table = lake.table(name)
        files = [file for file in list_files(table) if file.path == path]
        if not files:
            return
        with suppress(CommitFailedError):
            replace_files(table, files, [], {}, data_change=True)
