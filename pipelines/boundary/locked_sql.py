"""SQL that users write: its syntax tree as DuckDB parses it, and a connection without access to anything else.

`reputation/query_guard.py` decides what a reader may ask a warehouse, `mapping/row_wise.py` what a source may select.
"""

import json
from collections.abc import Iterator
from typing import Any, cast

import duckdb

MAX_QUERY_CHARS = 100_000
"""DuckDB's parser overflows the stack, which ends the process, at some tens of thousands of nested subqueries."""
RUN_TEXT = {"query", "json_execute_serialized_sql"}
"""Functions that run a text as SQL, which no check of a syntax tree sees."""
_SETTINGS = (
    "allow_community_extensions = false",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "allow_persistent_secrets = false",
    "python_enable_replacements = false",
    "enable_external_access = false",
)


def lock_settings(connection: duckdb.DuckDBPyConnection) -> None:
    """Close files, network and extensions to a connection and its cursors, and lock their settings: set others before.

    Without GLOBAL, DuckDB keeps a setting of Python to the connection, and its cursors have the default.
    """
    for setting in (*_SETTINGS, "lock_configuration = true"):
        connection.execute(f"SET GLOBAL {setting}")


def syntax_tree(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """Return the syntax tree of the queries in a text: `statements`, or `error` and its message.

    Raises RecursionError if it is nested too deep.
    """
    with connection.cursor() as parser:
        ((answer,),) = parser.execute("SELECT json_serialize_sql(CAST(? AS VARCHAR))", [text]).fetchall()
    tree = json.loads(answer)
    if "expression depth limit" in tree.get("error_message", ""):
        raise RecursionError
    return tree


def tree_objects(tree: object) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON document."""
    pending = [tree]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            found = cast("dict[str, Any]", part)
            yield found
            pending.extend(found.values())
        elif isinstance(part, list):
            pending.extend(cast("list[object]", part))


def literal(text: str) -> str:
    """Return a text as an SQL literal, where a value cannot be bound: paths in a stored view."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier, for columns named by a user."""
    return '"' + name.replace('"', '""') + '"'
