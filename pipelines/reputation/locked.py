"""What a query of a reader may do: read the warehouse and the lake's files of its snapshot, and nothing else.

Owns both barriers. The statement has to be one query: DuckDB's own parser says so, since a query may hold a COPY or an
INSERT within. And the connection has no access to files, extensions or the network beside the snapshot, and a
configuration that nothing can change.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import duckdb

from pipelines.errors import UsageError
from pipelines.reputation.sql import literal

_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_HIDING = {"query", "json_execute_serialized_sql"}
"""Functions that run a text as SQL, which no parser sees before."""
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?", re.IGNORECASE)
_FILE = re.compile(r"'((?:[^']|'')+\.parquet)'")
_ONE_QUERY = "a warehouse is read by one SELECT, FROM, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN"
_SETTINGS = (
    "allow_community_extensions = false",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "allow_persistent_secrets = false",
    "python_enable_replacements = false",
    "enable_external_access = false",
)


def lock(connection: duckdb.DuckDBPyConnection, *files: Path) -> None:
    """Leave a connection to a warehouse no access but to the files that its views read, and to `files`.

    Everything that has to be set, registered or attached comes before: the settings are locked, too.
    """
    views = connection.execute("SELECT sql FROM duckdb_views() WHERE NOT internal").fetchall()
    read = [path.replace("''", "'") for (view,) in views for path in _FILE.findall(view)]
    allowed = ", ".join(map(literal, [*read, *map(str, files)]))
    connection.execute(f"SET allowed_paths = [{allowed}]")
    for setting in _SETTINGS:
        connection.execute(f"SET {setting}")
    connection.execute("SET lock_configuration = true")


def check_query(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raise UsageError unless a text is one query that only reads."""
    text = _EXPLAIN.sub("", query, count=1) if _EXPLAIN.match(query) else query
    tree = _parsed(connection, text)
    if tree["error"]:
        raise UsageError(_refused(text, tree))
    if not tree["statements"]:
        raise UsageError("there is nothing to run: the query is empty")
    if len(tree["statements"]) > 1:
        raise UsageError(f"{len(tree['statements'])} statements were given: {_ONE_QUERY}, one at a time")
    for part in _parts(tree):
        kind = str(part.get("type", ""))
        if kind.endswith("_NODE") and kind not in _NODES:
            raise UsageError(f"{kind.partition('_')[0]} within the query would write: {_ONE_QUERY}")
        if str(part.get("function_name", "")).lower() in _HIDING:
            raise UsageError(f"{part['function_name']}() runs a text as SQL: write that query itself")


def _parsed(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    with connection.cursor() as parser:
        ((answer,),) = parser.execute("SELECT json_serialize_sql(CAST(? AS VARCHAR))", [text]).fetchall()
    return json.loads(answer)


def _refused(text: str, tree: dict[str, Any]) -> str:
    """Return why there is no tree: a mistake in the SQL, or a statement that is no query."""
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


def _parts(tree: object) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON document."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found = cast("dict[str, Any]", part)
            yield found
            waiting.extend(found.values())
        elif isinstance(part, list):
            waiting.extend(cast("list[object]", part))
