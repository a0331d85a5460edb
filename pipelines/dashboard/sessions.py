"""The warehouse that a session of the dashboard reads: sessions share what the settings let queries use."""

import threading
from pathlib import Path

from pipelines.reputation.warehouse import Warehouse
from pipelines.reputation.warehouse_file import Access
from pipelines.settings import QueriesSettings, Settings

_Opened = tuple[Path, QueriesSettings, int, int, int]
_LOCK = threading.Lock()
_shared: dict[_Opened, Warehouse] = {}
"""The warehouse that was opened last."""


def open_session(settings: Settings) -> Warehouse:
    """Return a session's own handle on the warehouse that is published now; it stays the same until it is closed.

    Sessions that begin between two publications share one instance of DuckDB, so the limits of `settings.queries` hold
    for all of their queries together. The instance closes with the last of them.
    Raises UsageError when there is no warehouse, or it cannot be opened.
    """
    path = settings.warehouse_path
    with _LOCK:
        opened = _identify(path, settings.queries)
        if opened is None or opened not in _shared:
            _shared.clear()
            warehouse = Warehouse(path, access=Access(limits=settings.queries))
            if opened is None:  # it was published just now
                return warehouse
            _shared[opened] = warehouse
        return _shared[opened].snapshot()


def _identify(path: Path, limits: QueriesSettings) -> _Opened | None:
    """Return what tells a publication from the next, which replaces the file; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return path, limits, found.st_ino, found.st_size, found.st_mtime_ns
