"""The warehouse that a session of the dashboard reads: sessions share what the settings let queries use."""

import threading
from pathlib import Path
from weakref import WeakValueDictionary

from pipelines.reputation.warehouse import Warehouse
from pipelines.reputation.warehouse_file import Access
from pipelines.settings import QueriesSettings, Settings

_Opened = tuple[Path, QueriesSettings, int, int, int]
_LOCK = threading.Lock()
_shared: WeakValueDictionary[_Opened, Warehouse] = WeakValueDictionary()
"""The warehouses of the sessions there are: one that is in no page is closed, so an erased user's file can go."""


def open_session(settings: Settings) -> Warehouse:
    """Return a session's own handle on the warehouse that is published now; it stays the same until it is closed.

    Sessions that begin between two publications share one instance of DuckDB, so the limits of `settings.queries` hold
    for all of their queries together. The instance closes with the last of them.
    Raises UsageError when there is no warehouse, or it cannot be opened.
    """
    path = settings.warehouse_path
    with _LOCK:
        opened = _identify(path, settings.queries)
        warehouse = None if opened is None else _shared.get(opened)
        if warehouse is None:
            warehouse = Warehouse(path, access=Access(limits=settings.queries))
        if opened is None:  # it was published just now
            return warehouse
        _shared[opened] = warehouse
        return warehouse.snapshot()


def _identify(path: Path, limits: QueriesSettings) -> _Opened | None:
    """Return what tells a publication from the next, which replaces the file; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return path, limits, found.st_ino, found.st_size, found.st_mtime_ns
