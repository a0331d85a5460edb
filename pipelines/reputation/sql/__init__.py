"""The statements of the derivation: one file, one statement, one purpose.

Owns reading them. `$fragments` in a file stand for SQL of ours (a type, a list of columns, a quoted path); values are
always bound or come from tables and variables.
"""

from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import duckdb

_FOLDER = Path(__file__).parent


def statement(name: str, /, **fragments: str) -> str:
    """Return the statement in `{name}.sql` with its fragments filled in."""
    return Template(_read(name)).substitute(fragments)


def literal(text: str) -> str:
    """Return a text as an SQL literal, for the few places where nothing can be bound: paths in a stored view."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as an SQL identifier, for columns that a query of a reader has named."""
    return '"' + name.replace('"', '""') + '"'


def use_utc(connection: duckdb.DuckDBPyConnection) -> None:
    """Let a connection and its cursors compute days and show times in UTC; one that is locked has it already."""
    if one_row(connection.execute("SELECT current_setting('TimeZone')")) != ("UTC",):
        connection.execute("SET GLOBAL TimeZone = 'UTC'")


def one_row(answer: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    """Return the row of an answer that always has one, as an aggregate over everything has."""
    (row,) = answer.fetchall()
    return row


@cache
def _read(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
