"""Which files hold rows of which users, without reading the files of others.

DuckDB excludes row groups by their statistics and Bloom filters (`files.py`) and reads `user_id` of the rest only. A
row group without a filter, written by another engine or an earlier release, is read.
"""

from collections.abc import Collection, Iterator, Sequence

import duckdb

from pipelines.lake.stores import is_remote, register_s3, translate_store_errors

_FILES_OF_USERS = """
SELECT DISTINCT file_index
FROM read_parquet($paths, hive_partitioning = false)
WHERE user_id IN (SELECT unnest($users::VARCHAR[]))
"""
_USERS = "SELECT DISTINCT user_id FROM read_parquet($paths, hive_partitioning = false)"
_FETCHED_ROWS = 100_000


def find_files(paths: Sequence[str], user_ids: Collection[str]) -> set[str]:
    """Return which files (paths or URIs, with a column `user_id`) hold rows of any of the users, exactly."""
    if not paths or not user_ids:
        return set()
    with translate_store_errors(paths[0]), duckdb.connect() as connection:
        values = {"paths": _readable(connection, paths), "users": list(user_ids)}
        found: list[tuple[int]] = connection.execute(_FILES_OF_USERS, values).fetchall()
        return {paths[index] for (index,) in found}


def list_users(paths: Sequence[str]) -> Iterator[str]:
    """Yield each user_id in files once. Reads one column of every row."""
    if not paths:
        return
    with translate_store_errors(paths[0]), duckdb.connect() as connection:
        rows = connection.execute(_USERS, {"paths": _readable(connection, paths)})
        while some := rows.fetchmany(_FETCHED_ROWS):
            yield from (user_id for (user_id,) in some)


def _readable(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> list[str]:
    if is_remote(paths[0]):
        register_s3(connection)
    return list(paths)
