"""The SQL of the derivation, and small helpers to run it.

The order of the names is the order of the data: `step_01_known_event.sql` reads `events`, and `step_18_reputation.sql`
returns the scores. A file holds one statement, named like the file, or several, each after a line `-- name: ...` and
lines that describe it. `refresh.sql` and `histories.sql` list theirs in the order in which a refresh runs them.

The policy is in the tables `role`, `emission` and `star` and in variables (`policy/tables.py`). `$fragments` of a
statement are filled with SQL from this package (a type, a list of columns, a quoted path): those of the steps by
`steps.py`, those of the last two by `views.py` and `measures.py`. Values are bound, or read from tables and variables.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import duckdb
import pyarrow as pa

_FOLDER = Path(__file__).parent
_NAMED = re.compile(r"^-- name: (\w+)\n(?:--.*\n)+", re.MULTILINE)


def statement(name: str, /, **fragments: str) -> str:
    """Return the named statement with its fragments filled in.

    Raises KeyError for an unknown statement or a missing fragment.
    """
    return Template(_statements()[name]).substitute(fragments)


def use_utc(connection: duckdb.DuckDBPyConnection) -> None:
    """Set the time zone of a connection and its cursors to UTC; a locked connection has it already."""
    if one_row(connection.execute("SELECT current_setting('TimeZone')")) != ("UTC",):
        connection.execute("SET GLOBAL TimeZone = 'UTC'")


@contextmanager
def arrow_rows(connection: duckdb.DuckDBPyConnection, rows: pa.Table, name: str = "arrow_rows") -> Generator[None]:
    """Make rows readable under a name for the statements of the block."""
    connection.register(name, rows)
    try:
        yield
    finally:
        connection.unregister(name)


def one_row(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    """Return the only row of a result. Raises ValueError unless it has exactly one."""
    (row,) = result.fetchall()
    return row


def all_statements() -> list[str]:
    """Return the text of every statement, without fragments: any change to the SQL changes it."""
    return list(_statements().values())


@cache
def _statements() -> dict[str, str]:
    """Return every statement of the folder by its name."""
    found: dict[str, str] = {}
    for path in sorted(_FOLDER.glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        _, *named = _NAMED.split(text)  # what comes before the first name is about the whole file
        bodies = (body.strip() for body in named[1::2])
        found |= dict(zip(named[::2], bodies, strict=True)) or {path.stem: text}
    return found
