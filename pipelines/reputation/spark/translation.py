"""Translates the statements of the derivation to Spark's SQL.

Owns every difference between the dialects: sqlglot translates most of the language, and `_REPLACED` the rest. Macros
are expanded where they are called, as in DuckDB; both dialects have session variables.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import sqlglot
from sqlglot import exp

from pipelines.reputation.sql import statement
from pipelines.reputation.steps import MACROS

_HUGEINT = exp.DataType.build("DECIMAL(38, 0)", dialect="spark")
POWER = "power_of_libm"
"""The power of DuckDB is the C library's; Spark's own differs from it in the last bit of some results."""
WHOLE_NUMBER = "double_to_hugeint"
"""A float without a fraction as a whole number (`sql/spark.sql`): Spark's own cast differs in the last digits."""
_RENAMED = {"epoch_us": "unix_micros", "make_timestamptz": "timestamp_micros"}


def translate(sql: str) -> str:
    """Return a DuckDB query in Spark's dialect; a temporary table or view becomes its query."""
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    return _translate(tree.expression if isinstance(tree, exp.Create) else tree)


def translate_view(sql: str) -> tuple[str, str]:
    """Return the name of a temporary view of DuckDB, and its query in Spark's dialect."""
    view = sqlglot.parse_one(sql, dialect="duckdb")
    return view.this.name, _translate(view.expression)


def _translate(query: exp.Expr) -> str:
    tree = query.transform(_without_macros)
    for node in reversed(list(tree.dfs())):  # inner nodes before outer ones
        replace = _REPLACED.get(type(node))
        if replace is not None:
            node.replace(replace(node))
    return tree.sql(dialect="spark", comments=False)


def _without_macros(node: exp.Expr) -> exp.Expr:
    """Expand a call of one of our macros."""
    if not isinstance(node, exp.Anonymous) or node.name.lower() not in MACROS:
        return node
    parameters, body = _macro(node.name.lower())
    arguments = dict(zip(parameters, node.expressions, strict=True))

    def filled(part: exp.Expr) -> exp.Expr:
        given = arguments.get(part.name) if isinstance(part, exp.Column) and not part.table else None
        return part if given is None else exp.paren(given.copy())

    return exp.paren(body.transform(filled)).transform(_without_macros)


@cache
def _macro(name: str) -> tuple[list[str], exp.Expr]:
    """Return a macro's parameters and body."""
    macro = sqlglot.parse_one(statement(f"macro_{name}"), dialect="duckdb")
    return [parameter.name for parameter in macro.this.expressions], macro.expression


def _function(node: exp.Anonymous) -> exp.Expr:
    name = node.name.lower()
    if name == "getvariable":
        return exp.column(node.expressions[0].name, table="session")
    if name == "to_months":
        return exp.func("make_ym_interval", exp.Literal.number(0), *node.expressions)
    return exp.func(_RENAMED[name], *node.expressions) if name in _RENAMED else node


def _select(node: exp.Select) -> exp.Select:
    """Write `* REPLACE (x AS c)` as `* EXCEPT (c), x AS c`: the order of columns changes, their names do not."""
    replaced: list[exp.Expr] = []
    for star in node.find_all(exp.Star):
        if star.find_ancestor(exp.Select) is node and star.args.get("replace"):
            aliases = star.args["replace"]
            star.set("except_", [*(star.args.get("except_") or ()), *(exp.column(alias.alias) for alias in aliases)])
            star.set("replace", None)
            replaced += aliases
    return node.select(*replaced, copy=False) if replaced else node


def _matches(node: exp.RegexpFullMatch) -> exp.Expr:
    """Anchor the pattern: Spark finds it anywhere, and its `$` also matches before a final line break."""
    pattern = exp.Literal.string(rf"\A(?:{node.expression.name})\z")
    return exp.RegexpLike(this=node.this, expression=pattern)


def _cast(node: exp.Cast) -> exp.Expr:
    if node.to.this == exp.DType.INT128:
        if isinstance(node.this, exp.Round):
            return exp.func(WHOLE_NUMBER, node.this)
        node.set("to", _HUGEINT.copy())
    return node


def _quantile(node: exp.PercentileDisc) -> exp.Expr:
    """Return the quantile in the type of its values, null for none; Spark's percentile_disc returns a float."""
    template = "get(sort_array(collect_list({0})), CAST(greatest(ceil(count({0}) * {1}), 1) AS INT) - 1)"
    return sqlglot.parse_one(template.format(node.this.sql("spark"), node.expression.sql("spark")), dialect="spark")


def _divided(node: exp.Binary) -> exp.Expr:
    """Make a division by zero null, as in DuckDB. In Spark it is an error, even in a branch that is not taken."""
    if not isinstance(node.expression, exp.Literal):
        node.set("expression", exp.func("nullif", node.expression, exp.Literal.number(0)))
    return node


_REPLACED: dict[type[exp.Expr], Callable[[Any], exp.Expr]] = {
    exp.Anonymous: _function,
    exp.Cast: _cast,
    exp.Div: _divided,
    exp.IntDiv: _divided,
    exp.Mod: _divided,
    exp.PercentileDisc: _quantile,
    exp.Pow: lambda node: exp.func(POWER, node.this, node.expression),
    exp.RegexpFullMatch: _matches,
    exp.Select: _select,
}
