"""Putting the rows of the touched users in the place of those that they had.

Only rows that differ are written: the others keep their place. Owns the comparison; which users are touched, and what
their rows are, comes from outside. Needs `touched_user` and a table `changed_day`, which remembers days for the trends.
"""

from collections.abc import Mapping

import duckdb
import polars as pl

from pipelines.reputation.sql import statement

_BY_DAY = {"user_days", "user_reasons"}


def replace_rows(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, str]) -> pl.Series:
    """Make each table hold, for the touched users, what its query says; return whose row in `reputation` changed."""
    changed = pl.Series("user_id", [], dtype=pl.String)
    for name, query in tables.items():
        connection.execute(statement("refresh/recomputed", query=query))
        connection.execute(statement("refresh/stored", name=name))
        connection.execute(statement("refresh/departed"))
        connection.execute(statement("refresh/arrived"))
        connection.execute(statement("refresh/remove_departed", name=name))
        connection.execute(statement("refresh/insert_arrived", name=name))
        if name in _BY_DAY:
            connection.execute(statement("refresh/changed_day"))
        if name == "reputation":
            changed = connection.sql(statement("refresh/changed_user")).pl()["user_id"]
    return changed
