"""Restricts a reader's SQL to the warehouse and the lake's files of its snapshot.

Owns both barriers. The text must be one query that only reads: DuckDB's own parser decides, because a query can contain
a COPY or an INSERT. And the connection has no access to other files, extensions or the network, and its configuration
is locked.
"""

import re
from collections.abc import Iterable
from typing import Any

import duckdb

from pipelines.boundary.locked_sql import (
    MAX_QUERY_CHARS,
    RUN_TEXT,
    literal,
    lock_settings,
    syntax_tree,
    tree_objects,
)
from pipelines.errors import UsageError

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?", re.IGNORECASE)
_ONE_QUERY = "a warehouse takes one SELECT, FROM, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN"


def lock_connection(connection: duckdb.DuckDBPyConnection, files: Iterable[str]) -> None:
    """Restrict a connection to the warehouse that it opened, and to `files`: those of its views, for one.

    It also locks the settings: set, register and attach everything before.
    """
    connection.execute(f"SET allowed_paths = [{', '.join(map(literal, files))}]")
    lock_settings(connection)


def check_query(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raise UsageError unless `query` is one query that only reads, of at most MAX_QUERY_CHARS."""
    if len(query) > MAX_QUERY_CHARS:
        raise UsageError(f"the query has {len(query):,} characters; at most {MAX_QUERY_CHARS:,} are read: shorten it")
    text = _explained(query)
    tree = _parsed(connection, text)
    if tree["error"]:
        raise UsageError(_describe_error(text, tree))
    if not tree["statements"]:
        raise UsageError("the query is empty")
    if len(tree["statements"]) > 1:
        raise UsageError(f"{len(tree['statements'])} statements in one text: {_ONE_QUERY}, one at a time")
    for part in tree_objects(tree):
        kind = str(part.get("type", ""))
        if kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise UsageError(f"{kind.partition('_')[0]} within the query would write: {_ONE_QUERY}")
        if str(part.get("function_name", "")).lower() in RUN_TEXT:
            raise UsageError(f"{part['function_name']}() runs a text as SQL: write the query directly")


def named_tables(connection: duckdb.DuckDBPyConnection, query: str) -> set[str]:
    """Return the names of what a query reads as tables, as it spells them; of a query that is refused, none."""
    if len(query) > MAX_QUERY_CHARS:
        return set()
    tree = _parsed(connection, _explained(query))
    return {str(part["table_name"]) for part in tree_objects(tree) if part.get("table_name")}


def _explained(query: str) -> str:
    """Return what an EXPLAIN explains, and any other query as it is."""
    return _EXPLAIN.sub("", query, count=1) if _EXPLAIN.match(query) else query


def _parsed(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    try:
        return syntax_tree(connection, text)
    except RecursionError:
        raise UsageError("the query is nested too deep: divide it into steps by WITH ... AS") from None


def _describe_error(text: str, tree: dict[str, Any]) -> str:
    """Return why there is no syntax tree: a mistake in the SQL, or a statement that is not a query."""
    try:
        statements = duckdb.extract_statements(text)
    except duckdb.Error as error:
        return f"the query failed: {error}"
    kinds = [statement.type for statement in statements]
    if kinds == [duckdb.StatementType.MULTI]:
        return "a PIVOT has to name its values: PIVOT ... ON column IN (...)"
    if all(kind == duckdb.StatementType.SELECT for kind in kinds):
        return f"the query failed: {tree['error_message']}"
    names = ", ".join(kind.name for kind in kinds)
    return f"{names} is not for a warehouse: {_ONE_QUERY}"
