"""Finding the files that hold rows of given users, without reading the other files.

DuckDB excludes row groups by their statistics and Bloom filters (`files.py`) and reads `user_id` of the rest only. A
row group without a filter, written by another engine or an earlier release, is read.
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager

import duckdb

from pipelines.errors import one_line
from pipelines.lake.stores import is_remote, register_s3, translate_store_errors

_FILES_OF_USERS = """
SELECT DISTINCT file_index
FROM read_parquet($paths, hive_partitioning = false)
WHERE user_id IN (SELECT unnest($users::VARCHAR[]))
"""
_USERS = "SELECT DISTINCT user_id FROM read_parquet($paths, hive_partitioning = false)"
_FETCHED_ROWS = 100_000


def find_files(paths: Sequence[str], user_ids: Collection[str]) -> set[str]:
    """Return which files (paths or URIs, with a column `user_id`) hold rows of any of the users, exactly.

    Raises TransientError when an object store does not answer, OSError when a file cannot be read.
    """
    if not paths or not user_ids:
        return set()
    with _reading(paths[0]) as connection:
        values = {"paths": list(paths), "users": list(user_ids)}
        found: list[tuple[int]] = connection.execute(_FILES_OF_USERS, values).fetchall()
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
    with translate_store_errors(path), duckdb.connect() as connection:
        if is_remote(path):
            register_s3(connection)
        try:
            yield connection
        except duckdb.IOException as error:
            raise OSError(one_line(error)) from error
