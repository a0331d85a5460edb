"""The members of a JSON value that a SELECT reads as text, read together: DuckDB parses the value for each `->>` again.

`value->>'a'` and `value->'a'->>'b'`, with constant names, become items of the hidden column TEXTS of `record`. Only in
a SELECT that reads `record` itself is `value` surely that of the record; elsewhere nothing changes.
"""

import re
from collections.abc import Iterator
from typing import Any

import duckdb

from pipelines.boundary.locked_sql import identifier, literal, syntax_tree, tree_objects

TEXTS = "__karmalake_texts"
"""The hidden column: a list of the members as text."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Names that are no JSON path: one may begin with $ or /."""
_QUOTED_PATH = re.compile(r'\$(\."[^"\\*]+")+')
"""A path of quoted names, as plain fields have it."""
_Chain = tuple[list[dict[str, Any]], list[str]]
"""The operands of `->` and `->>`, and the operators between them."""


def share_members(connection: duckdb.DuckDBPyConnection, tree: dict[str, Any], relation: str) -> str | None:
    """Let a checked SELECT over `relation` read members from TEXTS; return that column's SQL, None if there is none."""
    if any(_is_function(part) or part.get("class") == "STAR" for part in tree_objects(tree)):
        return None
    members = list(_members(tree, relation))
    paths = list(dict.fromkeys(path for _, path in members))
    if len(paths) <= 1:
        return None
    parsed = syntax_tree(connection, f"SELECT {identifier(TEXTS)}[1]")
    for part, path in members:
        item = parsed["statements"][0]["node"]["select_list"][0]
        column, number = item["children"]
        place = number | {"literal": number["literal"] | {"text": str(paths.index(path) + 1)}}
        kept = {key: part[key] for key in ("alias", "query_location")}
        part.clear()
        part.update(item | {"children": [dict(column), place]} | kept)
    return f"json_extract_string(value, [{', '.join(map(literal, paths))}]) AS {identifier(TEXTS)}"


def _is_function(part: dict[str, Any]) -> bool:
    """Return whether an arrow is a function of a parameter, which may be named `value`, too."""
    return part.get("class") == "LAMBDA" and any(each.get("column_names") for each in tree_objects(part["expr"]))


def _members(tree: dict[str, Any], relation: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the expressions that read a member of `value` as text, with its path."""
    for node in tree_objects(tree):
        source: Any = node.get("from_table") or {}
        if source.get("type") == "BASE_TABLE" and str(source["table_name"]).lower() == relation:
            pending: list[Any] = [*_named(node["select_list"]), node["where_clause"]]
            while pending:
                part = pending.pop()
                path = _path(part) if isinstance(part, dict) else None
                if path:
                    yield part, path
                elif isinstance(part, dict | list):
                    pending.extend(part.values() if isinstance(part, dict) else part)


def _named(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the columns of a SELECT; those that read a member have a name."""
    for number, item in enumerate(items, 1):
        if not item["alias"] and _path(item):
            item["alias"] = f"column {number}"
    return items


def _path(part: dict[str, Any]) -> str | None:
    """Return the JSON path of a member of `value` that an expression reads as text."""
    (first, *others), operators = _chain(part)
    names = [str((each.get("literal") or {}).get("text", "")) for each in others]
    is_member = first.get("column_names") == ["value"] and operators == [*["->"] * (len(names) - 1), "->>"]
    are_constant = all(each.get("class") == "CONSTANT" and each["literal"]["kind"] == "STRING" for each in others)
    if not (is_member and are_constant):
        return None
    if len(names) == 1 and _QUOTED_PATH.fullmatch(names[0]):
        return names[0]
    if not all(map(_NAME.fullmatch, names)):
        return None
    return "$" + "".join(f'."{name}"' for name in names)


def _chain(part: dict[str, Any]) -> _Chain:
    if part.get("class") == "FUNCTION" and part["function_name"] == "->>":
        operator, sides = "->>", [argument["expression"] for argument in part["arguments"]]
    elif part.get("class") == "LAMBDA" and part.get("syntax_type") == "SINGLE_ARROW":
        operator, sides = "->", [part["lhs"], part["expr"]]
    else:
        return [part], []
    (left, before), (right, after) = map(_chain, sides)
    return [*left, *right], [*before, operator, *after]
