"""History files straight into the lake, without the bus: another source for the very same drain."""

from collections.abc import Callable
from pathlib import Path

from pipelines.drain import drain, open_ingest_from
from pipelines.emit.files import Mapping
from pipelines.ingest.file import open_file
from pipelines.lake.commit import CommitRecord
from pipelines.settings import Settings


def backfill(settings: Settings, path: Path, mapping: Mapping, report: Callable[[CommitRecord], None]) -> int:
    """Commit the rows of a file that the lake does not have, calling `report` after each commit; return their number.

    Whatever kills it: the next call goes on from the last commit (`once`). Several files may be loaded at a time, by
    processes of their own, beside ingest from the bus. Raises UsageError for a file that is not there or is not what
    the mapping says, RejectedError when most of its rows are no events.
    """
    with open_ingest_from(open_file(path, mapping, settings), settings) as ingest:
        return drain(ingest, report)
