"""Finding the files that hold rows of given users or batches, without reading the other files.

DuckDB excludes row groups by their statistics and Bloom filters (`files.py`) and reads one column of the rest only. A
row group without a filter, written by another engine or an earlier release, is read.
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import duckdb

from pipelines.boundary.database import connect
from pipelines.errors import one_line
from pipelines.lake.stores import is_remote, register_s3, translate_store_errors

_FILES_WITH = """
SELECT DISTINCT file_index
FROM read_parquet($paths, hive_partitioning = false)
WHERE {column} IN (SELECT unnest($wanted::VARCHAR[]))
"""
_USERS = "SELECT DISTINCT user_id FROM read_parquet($paths, hive_partitioning = false)"
_FETCHED_ROWS = 100_000


def find_files(
    paths: Sequence[str], wanted: Collection[str], column: Literal["user_id", "batch_id"] = "user_id"
) -> set[str]:
    """Return which files (paths or URIs, with this column) hold rows with any of the wanted ids, exactly.

    Raises TransientError when an object store does not answer, OSError when a file cannot be read.
    """
    if not paths or not wanted:
        return set()
    with _reading(paths[0]) as connection:
        values = {"paths": list(paths), "wanted": list(wanted)}
        found: list[tuple[int]] = connection.execute(_FILES_WITH.format(column=column), values).fetchall()
    return {paths[index] for (index,) in found}


def list_users(paths: Sequence[str]) -> Iterator[str]:
    """Yield each user_id in files once, and raise like `find_files`. Reads one column of every row."""
    if not paths:
        return
    with _reading(paths[0]) as connection:
        rows = connection.execute(_USERS, {"paths": list(paths)})
        while some := rows.fetchmany(_FETCHED_ROWS):
            yield from (user_id for (user_id,) in some)


@contextmanager
def _reading(path: str) -> Generator[duckdb.DuckDBPyConnection]:
    """Yield a connection that reads the store of a path, with errors like those of other reads of the lake."""
    with translate_store_errors(path), connect() as connection:
        if is_remote(path):
            register_s3(connection)
        try:
            yield connection
        except duckdb.IOException as error:
            raise OSError(one_line(error)) from error
