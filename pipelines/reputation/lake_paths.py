"""Where a warehouse finds the lake's files: relative to its own folder if the lake is in it, so that both can be moved.

The views hold relative paths, and a connection looks for them in the folder of the file that it opened. DuckDB
separates the folders to look in by commas, so the paths of a folder with a comma in its name are absolute.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb

from pipelines.boundary.locked_sql import literal
from pipelines.errors import UsageError
from pipelines.lake.stores import is_remote
from pipelines.lake.tables import Snapshot

_FILE = re.compile(r"'((?:[^']|'')+\.parquet)'")
_VIEWS = "SELECT sql FROM duckdb_views() WHERE database_name = 'warehouse'"


def relative_to(folder: Path, snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with the paths of its files relative to a folder, where they are in it."""
    if not _is_searchable(folder):
        return snapshot
    prefix = f"{folder.absolute()}/"
    shorter = {name: tuple(file.removeprefix(prefix) for file in files) for name, files in snapshot.files.items()}
    return replace(snapshot, files=shorter)


def look_in(folder: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Make a connection and its cursors look for relative paths in a folder."""
    if _is_searchable(folder):
        connection.execute("SET GLOBAL file_search_path = ?", [str(folder.absolute())])


def files_of_views(folder: Path, connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Yield the paths and URIs that the views of a warehouse in a folder read, relative ones also as absolute.

    Raises UsageError for relative ones if the folder has a comma in its name.
    """
    for (view,) in connection.execute(_VIEWS).fetchall():
        for path in _paths(view):
            yield path
            if _is_relative(path):
                yield _absolute(folder, path)


def with_absolute_paths(folder: Path, view: str) -> str:
    """Return the SQL of a view with relative paths replaced by those in a folder, for a file in another place."""
    return _FILE.sub(lambda found: _absolute_literal(folder, found[1]), view)


def _absolute_literal(folder: Path, quoted: str) -> str:
    return literal(_absolute(folder, quoted.replace("''", "'"))) if _is_relative(quoted) else f"'{quoted}'"


def _paths(view: str) -> Iterable[str]:
    return (path.replace("''", "'") for path in _FILE.findall(view))


def _absolute(folder: Path, path: str) -> str:
    if not _is_searchable(folder):
        raise UsageError(f"the warehouse was moved to {folder}, which has a comma in its name: rename that folder")
    return str(folder.absolute() / path)


def _is_relative(path: str) -> bool:
    return not Path(path).is_absolute() and not is_remote(path)


def _is_searchable(folder: Path) -> bool:
    return "," not in str(folder.absolute())
