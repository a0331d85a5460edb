"""Which SELECT a source may have, and how each of its rows keeps the number of the record that it comes from.

A row must depend on one record alone, never on which records share a batch (`replay-equals-live`). The rule is one of
form, so that it holds by construction: exactly one relation of each FROM comes from `record` (`record` itself, a
subquery or a WITH of this form), all others are constants or functions of its row, such as unnest(); and nothing
combines rows: no aggregate, window, DISTINCT, ORDER BY or LIMIT, and of set operations only UNION ALL. Then each row
has one row of `record`, and the hidden column ROW, added to every SELECT over `record`, carries its number to the end.

ROW itself cannot be read, since a record has another number in another batch: neither by its name, nor within a whole
row (`SELECT record`), nor by a position (`#1`), nor by a pattern (`COLUMNS('.*')`).

Functions are judged by DuckDB's catalogue: only those that have arguments and that it calls CONSISTENT are pure. For
times with a zone it may call them CONSISTENT_WITHIN_QUERY, since the zone is a setting; here that is UTC, and locked.
The text is never changed: its syntax tree is, and `json_execute_serialized_sql` runs that.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

import duckdb

from pipelines.boundary.locked_sql import MAX_QUERY_CHARS, syntax_tree, tree_objects
from pipelines.errors import ConfigurationError

ROW = "__karmalake_row"
"""The hidden column of `record`: the number of the record in its batch."""
RELATION = "record"
_TABLE_FUNCTIONS = {"unnest", "range", "generate_series", "json_each", "json_tree"}
"""Functions of one row that return several; the catalogue does not say which table functions are pure."""
_OF_SQL = "it shows how this release of DuckDB reads a text as SQL, and may show its settings"
_UNSTABLE = {
    "hash": "it is another number in another release of DuckDB: use md5() or sha256()",
    **dict.fromkeys(("json_deserialize_sql", "json_serialize_plan", "json_serialize_sql"), _OF_SQL),
}
"""Functions of their arguments alone that another release computes in another way."""
_AGGREGATE_LIST = {"list_aggregate", "list_aggr", "array_aggregate", "array_aggr", "aggregate"}
"""Functions that name an aggregate by a text."""
_INEXACT = {"approx_count_distinct", "approx_quantile", "approx_top_k", "reservoir_quantile"}
"""Aggregates that estimate: another release of DuckDB may have another value."""
_CONSTANTS = {"pi"}
"""What has a value without arguments; the catalogue calls some others consistent that read the clock."""
_FUNCTIONS = """
SELECT
    lower(function_name),
    function_type,
    bool_and(stability <> 'VOLATILE')
        AND bool_or(stability = 'CONSISTENT' AND (len(parameters) > 0 OR varargs IS NOT NULL)),
    string_agg(macro_definition, ' ')
FROM duckdb_functions()
GROUP BY ALL
"""
_SCHEMAS = {"main", "temp", "memory", "system"}
"""What may stand before the name of a relation."""
_UNNAMED = "unnamed_subquery"
"""Begins the name that DuckDB gives to a subquery without one."""
_CLAUSES = {
    "group_expressions": "GROUP BY combines records: use list functions such as list_sum() over the items of one",
    "having": "HAVING combines records: use WHERE",
    "qualify": "QUALIFY combines records: use WHERE",
    "sample": "a sample depends on chance: use WHERE",
}
_MODIFIERS = {
    "ORDER_MODIFIER": "ORDER BY has no meaning here, and would order a batch: remove it",
    "LIMIT_MODIFIER": "LIMIT depends on the batch: use WHERE",
    "LIMIT_PERCENT_MODIFIER": "LIMIT depends on the batch: use WHERE",
    "DISTINCT_MODIFIER": "DISTINCT compares records: remove it, since equal event_ids count once anyway",
}
_TOO_DEEP = "it is nested too deep: divide it into steps by WITH ... AS"
_PER_RECORD = "an event must depend on its own record alone, never on the others of its batch"


class SelectError(ConfigurationError):
    """A SELECT is not allowed; the message says in which line, why, and what to do."""


@dataclass(frozen=True, slots=True)
class RowWise:
    """A checked SELECT as a syntax tree whose rows have the column ROW."""

    tree: str
    """JSON, for `json_execute_serialized_sql`."""
    names: frozenset[str]
    """All names in it, in small letters; `*` if it has a star."""


def check_select(connection: duckdb.DuckDBPyConnection, text: str, columns: frozenset[str] | None) -> RowWise:
    """Return a SELECT over `record` with the column ROW in its rows; `columns` are the names of `record`'s columns.

    They are None if they are not known yet: then any name may be one of them. Raises SelectError unless it is one
    SELECT whose rows depend on one record each.
    """
    if len(text) > MAX_QUERY_CHARS:
        raise SelectError(f"it has {len(text):,} characters; at most {MAX_QUERY_CHARS:,} are read: shorten it")
    if ROW in text.lower():
        raise SelectError(f"the name {ROW} is reserved: choose another one")
    tree = _parse(connection, text)
    node = tree["statements"][0]["node"]
    names = {str(name).lower() for part in tree_objects(tree) for name in part.get("column_names") or []}
    known = names if columns is None else {name.lower() for name in columns}
    try:
        _Check(text, _Catalogue.read(connection, names), known, _relation_names(tree)).run(node)
    except RecursionError:
        raise SelectError(_TOO_DEEP) from None
    if any(part.get("class") == "STAR" for part in tree_objects(tree)):
        names.add("*")
    return RowWise(json.dumps(tree), frozenset(names))


def _relation_names(tree: dict[str, Any]) -> set[str]:
    """Return the names of tables and subqueries in FROM, in small letters: as a value, each is a whole row."""
    found = (part for part in tree_objects(tree) if str(part.get("type")) in {"BASE_TABLE", "SUBQUERY"})
    return {str(part.get("alias") or part.get("table_name") or "").lower() for part in found}


def _parse(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    try:
        tree = syntax_tree(connection, text)
    except RecursionError:
        raise SelectError(_TOO_DEEP) from None
    if tree["error"]:
        raise SelectError(_syntax_error(text, tree))
    if len(tree["statements"]) != 1:
        raise SelectError(f"it has {len(tree['statements'])} statements: write one SELECT")
    return tree


def _syntax_error(text: str, tree: dict[str, Any]) -> str:
    try:
        kinds = [statement.type.name for statement in duckdb.extract_statements(text)]
    except duckdb.Error as error:
        return f"it is not SQL: {error}"
    others = [kind for kind in kinds if kind != "SELECT"]
    return (
        f"{others[0]} is not a SELECT: write one SELECT" if others else f"it is not a SELECT: {tree['error_message']}"
    )


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """DuckDB's functions by what they are, in small letters."""

    impure: frozenset[str]
    """Scalar functions whose value depends on more than their arguments, and macros that use one."""
    aggregates: frozenset[str]

    constants: frozenset[str]
    """Names that are values without being columns, such as current_timestamp."""

    @classmethod
    def read(cls, connection: duckdb.DuckDBPyConnection, names: set[str]) -> "_Catalogue":
        """Read the catalogue; `names` are those that the query uses like columns."""
        rows: list[tuple[str, str, bool, str | None]] = connection.execute(_FUNCTIONS).fetchall()
        scalars = {name for name, kind, _, _ in rows if kind == "scalar"}
        impure = {name for name, kind, is_pure, _ in rows if kind == "scalar" and not is_pure} - _CONSTANTS
        impure |= {name.removeprefix("get_") for name in impure}
        refused = {*impure, *_INEXACT, "current_user", "select"}
        impure |= {name for name, kind, _, text in rows if kind == "macro" and _words(text) & refused}
        combining = {name for name, kind, _, _ in rows if kind in {"aggregate", "window"}}
        constants = {name for name in names if _is_constant(connection, name)}
        return cls(frozenset(impure), frozenset(combining - scalars), frozenset(constants))


def _is_constant(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Return whether a name has a value without any relation."""
    try:
        return bool(re.fullmatch(r"[a-z_]+", name)) and bool(connection.execute(f"DESCRIBE SELECT {name}"))
    except duckdb.Error:
        return False


def _words(text: str | None) -> set[str]:
    return set(re.findall(r"\w+", (text or "").lower()))


def _is_exact(arguments: list[dict[str, Any]]) -> bool:
    """Return whether the second argument is the text of an aggregate's name, of one that is exact."""
    literal = (arguments[1]["expression"].get("literal") or {}) if len(arguments) > 1 else {}
    return literal.get("kind") == "STRING" and str(literal["text"]).lower() not in _INEXACT


@dataclass(slots=True)
class _Check:
    """The check of one SELECT: `run` raises SelectError, or adds ROW to each SELECT over `record`."""

    text: str
    catalogue: _Catalogue
    columns: set[str]
    whole_rows: set[str]
    """The names of relations, which as a value are whole rows with ROW."""
    relations: dict[str, bool] = field(default_factory=lambda: {RELATION: True})
    """The names that FROM may use, and whether their rows are those of records."""

    def run(self, node: dict[str, Any]) -> None:
        """Check a whole query."""
        if not self._query(node):
            raise SelectError(f"it does not read {RELATION}: write FROM {RELATION}")

    def _query(self, node: dict[str, Any]) -> bool:
        """Check a query; return whether its rows are those of records."""
        outer = dict(self.relations)
        try:
            for entry in node["cte_map"]["map"]:
                self._define(entry["key"].lower(), entry["value"]["query_node"])
            return self._body(node)
        finally:
            self.relations = outer

    def _define(self, name: str, node: dict[str, Any]) -> None:
        if name == RELATION:
            raise self._refusal({}, f"WITH {RELATION} hides the records: choose another name")
        self.relations[name] = self._query(node)

    def _body(self, node: dict[str, Any]) -> bool:
        for modifier in node["modifiers"]:
            raise self._refusal({}, _MODIFIERS.get(modifier["type"], f"{modifier['type']} is not allowed"))
        match node["type"]:
            case "SELECT_NODE":
                return self._select(node)
            case "SET_OPERATION_NODE":
                return self._union(node)
            case other:
                kind = str(other).removesuffix("_NODE").replace("_", " ")
                raise self._refusal({}, f"{kind} is not allowed: {_PER_RECORD}")

    def _union(self, node: dict[str, Any]) -> bool:
        if not str(node["setop_type"]).startswith("UNION") or not node["setop_all"]:
            name = str(node["setop_type"]).replace("_", " ")
            raise self._refusal({}, f"{name} compares records: of set operations only UNION ALL is allowed")
        parts = [self._query(part) for part in [node["left"], node["right"], *node.get("children", [])] if part]
        if len(set(parts)) > 1:
            raise self._refusal({}, f"a part of the UNION ALL does not read {RELATION}: add FROM {RELATION} to it")
        return parts[0]

    def _select(self, node: dict[str, Any]) -> bool:
        for clause, reason in _CLAUSES.items():
            if node[clause]:
                raise self._refusal({}, reason)
        if node["aggregate_handling"] == "FORCE_AGGREGATES":
            raise self._refusal({}, _CLAUSES["group_expressions"])
        for expression in (node["select_list"], node["where_clause"]):
            self._expression(expression)
        is_of_records = self._source(node["from_table"])
        if is_of_records:
            self._add_row(node)
        return is_of_records

    def _add_row(self, node: dict[str, Any]) -> None:
        """Add ROW to the columns of a SELECT over `record`, and leave it out of its stars."""
        for part in tree_objects([node["select_list"], node["where_clause"]]):
            if part.get("class") == "STAR":
                cast("list[Any]", part["exclude_list"]).append(ROW)
        node["select_list"].append(
            {"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": ROW, "query_location": 0, "column_names": [ROW]}
        )

    def _source(self, source: dict[str, Any]) -> bool:
        """Check a relation of FROM; return whether its rows are those of records."""
        if source.get("sample"):
            raise self._refusal(source, _CLAUSES["sample"])
        match source["type"]:
            case "EMPTY" | "EXPRESSION_LIST" | "COLUMN_DATA":
                self._expression(source.get("values"))
                return False
            case "BASE_TABLE":
                return self._table(source)
            case "SUBQUERY":
                return self._query(source["subquery"]["node"])
            case "TABLE_FUNCTION":
                return self._table_function(source)
            case "JOIN":
                return self._join(source)
            case other:
                raise self._refusal(source, f"{other} in FROM is not allowed: {_PER_RECORD}")

    def _table(self, source: dict[str, Any]) -> bool:
        name = str(source["table_name"]).lower()
        if source["schema_name"] or source["catalog_name"] or name not in self.relations:
            raise self._refusal(
                source, f"there is no relation {source['table_name']!r}: the one that exists is {RELATION}"
            )
        return self.relations[name]

    def _table_function(self, source: dict[str, Any]) -> bool:
        name = str(source["function"]["function_name"]).lower()
        if name not in _TABLE_FUNCTIONS:
            allowed = ", ".join(sorted(_TABLE_FUNCTIONS))
            raise self._refusal(source, f"{name}() is not allowed in FROM: those that are: {allowed}")
        self._expression(source["function"]["arguments"])
        return False

    def _join(self, source: dict[str, Any]) -> bool:
        left, right = self._source(source["left"]), self._source(source["right"])
        self._expression(source["condition"])
        if left and right:
            raise self._refusal(source, f"a join of records with records is not allowed: {_PER_RECORD}")
        if source["ref_type"] not in {"REGULAR", "CROSS"} or source["join_type"] not in {"INNER", "LEFT"}:
            raise self._refusal(source, "of joins, CROSS, INNER and LEFT with values or unnest() are allowed")
        if right and source["join_type"] == "LEFT":
            raise self._refusal(source, f"a LEFT JOIN needs {RELATION} on its left side")
        return left or right

    def _expression(self, tree: object) -> None:
        for part in tree_objects(tree):
            kind = part.get("class")
            if kind == "SUBQUERY":
                reason = "a subquery in an expression may read other records: use list functions, or unnest() in FROM"
                raise self._refusal(part, reason)
            if kind == "WINDOW":
                raise self._refusal(part, f"{part['function_name']}() OVER combines records: {_PER_RECORD}")
            if kind == "PARAMETER":
                raise self._refusal(part, "a parameter has no value here: write it out")
            if kind == "POSITIONAL_REFERENCE":
                raise self._refusal(part, "a column by its position is not allowed: write its name")
            if kind == "STAR" and part["expr"] is not None:
                raise self._refusal(part, "COLUMNS with a pattern is not allowed: name the columns")
            if kind == "COLUMN_REF":
                self._column(part)
            if kind in {"FUNCTION", "COLUMN_REF"}:
                self._function(part)

    def _column(self, part: dict[str, Any]) -> None:
        """Refuse ROW, also within a whole row."""
        names = [str(name).lower() for name in part["column_names"]]
        if ROW in names:
            raise self._refusal(part, f"the name {ROW} is reserved: choose another one")
        is_relation = names[-1] in self.whole_rows or names[-1].startswith(_UNNAMED)
        if is_relation and set(names[:-1]) <= _SCHEMAS:
            reason = f"{names[-1]} is a relation, and its whole row is not the same in every batch: name its columns"
            raise self._refusal(part, f"{reason}, or give it another name by AS if you mean a column")

    def _function(self, part: dict[str, Any]) -> None:
        """Refuse an impure function, also one that is written like a column, such as current_timestamp."""
        if part["class"] == "COLUMN_REF":
            names = [str(name).lower() for name in part["column_names"]]
            name = names[0] if len(names) == 1 and names[0] not in self.columns else ""
            impure = self.catalogue.constants
        else:
            name, impure = str(part["function_name"]).lower(), self.catalogue.impure
        if name in impure:
            reason = f"{name} is another value each time, and an event must be the same whenever its record is read"
            meant = f"; there is no column {name}, if that is meant" if part["class"] == "COLUMN_REF" else ""
            raise self._refusal(part, f"{reason}: use a field of the record, such as bus_time{meant}")
        if part["class"] == "FUNCTION" and name in self.catalogue.aggregates:
            raise self._refusal(part, f"{name}() combines records: use list functions over the items of one record")
        if part["class"] == "FUNCTION" and name in _UNSTABLE:
            raise self._refusal(part, f"{name}() is not allowed: {_UNSTABLE[name]}")
        if part["class"] == "FUNCTION" and name in _AGGREGATE_LIST and not _is_exact(part["arguments"]):
            reason = f"{name}() needs the name of its aggregate as a text, and none of {', '.join(sorted(_INEXACT))}"
            raise self._refusal(part, f"{reason}: those are estimates, others in another release")
        if part["class"] == "FUNCTION" and name == "age" and len(part["arguments"]) == 1:
            raise self._refusal(part, "age() of one time is of today: give it two, such as age(bus_time, ...)")

    def _refusal(self, part: dict[str, Any], reason: str) -> SelectError:
        place = part.get("query_location", 2**64)
        if place > len(self.text.encode()):
            return SelectError(reason)
        line = self.text.encode()[:place].count(b"\n") + 1
        return SelectError(f"line {line}: {reason}")
