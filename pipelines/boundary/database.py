"""Connections to DuckDB, made in one place so that all have the same settings."""

from pathlib import Path

import duckdb


def connect(path: Path | None = None, **settings: str | int) -> duckdb.DuckDBPyConnection:
    """Return a connection to the database file at a path, or to a new one in memory; in UTC, without a progress bar.

    Where Python looks interactive (a notebook, `python -c`), DuckDB would draw a bar to standard output, also into a
    file or pipe, when a query takes more than two seconds.

    settings: DuckDB's, by name, such as `threads`.
    Raises duckdb.Error if the file cannot be opened.
    """
    connection = duckdb.connect(":memory:" if path is None else path, config={**settings})
    if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        connection.execute(
            "SET enable_progress_bar = false"
        )  # refused in a notebook without ipywidgets, which has none
    connection.execute("SET GLOBAL TimeZone = 'UTC'")  # also for cursors
    return connection
