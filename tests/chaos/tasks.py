"""The tasks of child processes in a chaos run: module-level functions, since a child finds them by name."""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.backfill import backfill
from pipelines.drain import accept_loss, open_ingest
from pipelines.lake.copying import copy_lake
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import compact
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping as Columns
from pipelines.stream import stream
from tests.draining import drain_all

__all__ = ["accept", "copy_to", "drain_all", "in_environment", "load", "merge_files", "serve", "streaming"]
_COLUMNS = Columns("user", "time", "s", "DriverRated", metadata=(("rating", "stars"),), event_id="id")
_ROWS_A_BATCH = 100


def merge_files(settings: Settings) -> None:
    """Merge small files, as `karmalake compact` does."""
    compact(open_lake(settings.lake_root), 4)


def serve(settings: Settings) -> None:
    """Refresh and publish, as `karmalake refresh` and `karmalake publish` do."""
    refresh_warehouse(settings)
    publish_warehouse(settings)


def streaming(settings: Settings) -> None:
    """Ingest, refresh and publish until killed, as `karmalake stream` does."""
    stream(settings, threading.Event(), lambda _commit: None, lambda _derived, _published: None)
    raise AssertionError("stream ended without an error")


def accept(settings: Settings) -> str | None:
    """Accept the brokers' losses, as `karmalake drain --accept-loss` does; return the note of the commit."""
    with open_ingest(settings) as ingest:
        record = accept_loss(ingest)
    return record.note if record else None


def copy_to(folder: Path, settings: Settings) -> None:
    """Copy the lake, as `karmalake copy` does."""
    copy_lake(open_lake(settings.lake_root), str(folder))


def load(path: Path, settings: Settings) -> None:
    """Load a file of history in small batches, as `karmalake backfill` does."""
    ingest = settings.ingest.model_copy(update={"max_batch_records": _ROWS_A_BATCH})
    backfill(settings.model_copy(update={"ingest": ingest}), path, _COLUMNS, lambda _: None)


def in_environment(environment: Mapping[str, str], task: Callable[..., object], *arguments: Any) -> None:
    """Run a task with additional environment variables: children inherit those of the fork server."""
    os.environ.update(environment)
    task(*arguments)
