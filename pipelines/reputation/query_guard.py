"""Restricts a reader's SQL to the warehouse and the lake's files of its snapshot.

Owns both barriers. The text must be one query that only reads: DuckDB's own parser decides, because a query can contain
a COPY or an INSERT, and of DuckDB's own functions and views it may use only those that neither change anything nor show
where the warehouse is. And the connection has no access to other files, extensions or the network, and its
configuration is locked.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb

from pipelines.boundary.database import connect
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
_IN_FROM = frozenset(
    {
        *("unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree", "summary"),
        *("duckdb_columns", "duckdb_constraints", "duckdb_functions", "duckdb_keywords", "duckdb_tables"),
        *("duckdb_types", "icu_calendar_names", "pg_timezone_names", "pragma_table_info", "pragma_version"),
    }
)
"""Functions of DuckDB that any reader may call in FROM, and views of that name."""
_FILE_READERS = re.compile(r"read_\w+|parquet_\w+|sniff_csv|glob")
"""Those that the connection restricts to the lake's files."""
_DESCRIBING = re.compile(r"query_table|histogram(_values)?|duckdb_\w+|pragma_\w+")
"""Those that a reader with `allow_files` may call, too: they show paths, or read what a text names."""
_HARMLESS = frozenset(
    {
        *("current_connection_id", "current_query", "current_query_id", "current_transaction_id", "error"),
        *("gen_random_uuid", "random", "setseed", "stats", "uuid", "uuidv4", "uuidv7", "vector_type"),
    }
)
"""Functions that DuckDB calls volatile, since each call has another value, and that change nothing."""
_REVEALING = frozenset({"current_setting", "json_serialize_plan"})
"""Functions of one value that show the settings, which hold paths."""
_BUILT_IN = """
SELECT
    lower(function_name),
    function_type IN ('table', 'table_macro', 'pragma'),
    coalesce(bool_or(stability = 'VOLATILE'), false),
    coalesce(string_agg(lower(macro_definition), ' '), '')
FROM duckdb_functions()
WHERE internal
GROUP BY ALL
"""
_BUILT_IN_VIEWS = "SELECT view_name FROM duckdb_views() WHERE internal AND schema_name <> 'information_schema'"


def lock_connection(connection: duckdb.DuckDBPyConnection, files: Iterable[str]) -> None:
    """Restrict a connection to the warehouse that it opened, and to `files`: those of its views, for one.

    It also locks the settings: set, register and attach everything before.
    """
    connection.execute(f"SET allowed_paths = [{', '.join(map(literal, files))}]")
    lock_settings(connection)


def check_query(connection: duckdb.DuckDBPyConnection, query: str, *, with_files: bool = False) -> None:
    """Raise UsageError unless `query` is one query that only reads, of at most MAX_QUERY_CHARS.

    with_files: it may also show paths and settings.
    """
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
        _check_function(part)
        _check_source(part, with_files=with_files)
        if not with_files:
            _check_revealing(part)


def _check_function(part: dict[str, Any]) -> None:
    """Raise UsageError for a function that runs a text, or changes something."""
    name = str(part.get("function_name", "")).lower()
    if name in RUN_TEXT:
        raise UsageError(f"{name}() runs a text as SQL: write the query directly")
    if name in _built_in().effects:
        raise UsageError(f"{name}() is not for a warehouse: it acts instead of reading")


def _check_source(part: dict[str, Any], *, with_files: bool) -> None:
    """Raise UsageError for a function of DuckDB in FROM that is not one of those allowed."""
    if part.get("type") != "TABLE_FUNCTION":
        return
    name = str(part["function"]["function_name"]).lower()
    is_allowed = name in _IN_FROM or _FILE_READERS.fullmatch(name) or (with_files and _DESCRIBING.fullmatch(name))
    if name in _built_in().sources and not is_allowed:
        raise UsageError(f"{name}() is not for a warehouse: in FROM, use {', '.join(sorted(_IN_FROM))}")


def _check_revealing(part: dict[str, Any]) -> None:
    """Raise UsageError for a function or view that shows settings, paths or the text of views."""
    name = str(part.get("function_name", "")).lower()
    if name in _REVEALING:
        raise UsageError(f"{name}() is not for a warehouse: it shows settings of the machine")
    if part.get("type") != "BASE_TABLE":
        return
    view = str(part["table_name"]).lower()
    is_schema = str(part["schema_name"]).lower() == "information_schema"
    if view == "views" if is_schema else view in _built_in().views - _IN_FROM:
        raise UsageError(f"{view} is not for a warehouse: see information_schema.tables and information_schema.columns")


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    """What DuckDB itself has, in small letters."""

    sources: frozenset[str]
    """Functions of FROM."""
    effects: frozenset[str]
    """Functions of one value that do something, and macros that use one."""
    views: frozenset[str]
    """Views outside information_schema."""


@cache
def _built_in() -> _BuiltIn:
    with connect() as connection:
        rows: list[tuple[str, bool, bool, str]] = connection.execute(_BUILT_IN).fetchall()
        views = frozenset(name.lower() for (name,) in connection.execute(_BUILT_IN_VIEWS).fetchall())
    effects = {name for name, is_source, is_volatile, _ in rows if is_volatile and not is_source} - _HARMLESS
    effects |= {name for name, _, _, text in rows if not effects.isdisjoint(re.findall(r"\w+", text))}
    return _BuiltIn(frozenset(name for name, is_source, *_ in rows if is_source), frozenset(effects), views)


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
