"""The reputations within scopes: a row for each user and value of a metadata key, beside the overall reputation.

Owns the columns, tables and queries of scopes. A contribution is computed once, by the rules of the policy over all of
a user's events, and belongs to at most one value of a scope: the score of a value is the sum of a part of the overall
contributions. It has no start and no bounds, like that of a window (decision 0019). A policy without scopes has none of
these columns and tables.
"""

from dataclasses import replace

import duckdb
import polars as pl

from pipelines.boundary.toml import did_you_mean
from pipelines.errors import KarmalakeError, UsageError
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.scopes import MAX_VALUE_CHARS
from pipelines.reputation.sql import statement
from pipelines.reputation.views import View, exact, rating_columns, shown_columns, view_sums, views

_SCORES, _SUMS, _DAYS = "reputation_by_", "reputation_sums_by_", "user_days_by_"
_MAX_VALUES = 1_000
"""Of a user, among which the closest to a misspelt one is looked for: those of the most events."""
_MAX_LISTED = 5


def is_scope_table(name: str) -> bool:
    """Return whether a table of a warehouse is one of a scope, whose rows belong to one user each."""
    return name.startswith((_SCORES, _SUMS, _DAYS))


def has_scope_scores(name: str) -> bool:
    """Return whether a table has the scores of a scope, which are in the documents."""
    return name.startswith((_SCORES, _SUMS))


def scope_views(policy: EffectivePolicy, scope: str) -> list[View]:
    """Return the views of a policy within a scope: none of them has a start or bounds."""
    return [replace(view, scope=(scope, None)) for view in views(policy)]


def value_columns(policy: EffectivePolicy) -> str:
    """Return the columns of `contribution` with the value of each scope, each after a comma."""
    longest = str(MAX_VALUE_CHARS)
    return "".join(f",\n    {statement('scope_value', scope=name, longest=longest)}" for name in policy.rules.scopes)


def fact_columns(policy: EffectivePolicy) -> str:
    """Return the columns of `fact` for the scopes, each after a comma; ranks and recencies if a measure needs them."""
    columns = [f"scope_{name}" for name in policy.rules.scopes]
    if policy.rules.ranks_ratings:
        columns += [statement("scope_rank", scope=name) for name in policy.rules.scopes]
    columns += [
        statement("recency", among=f"user_id, scope_{name}", half_life=str(length), name=f"recency_{number}_in_{name}")
        for name in policy.rules.scopes
        for number, length in enumerate(policy.rules.recencies_us)
    ]
    return "".join(f",\n    {column}" for column in columns)


def scope_table(policy: EffectivePolicy, scope: str) -> str:
    """Return the name of the table with the scores of a scope: of sums, where points decay."""
    return f"{_SUMS if policy.decays else _SCORES}{scope}"


def scope_relation(scope: str) -> str:
    """Return the name of the table or view of a warehouse with what is shown of each user and value."""
    return f"{_SCORES}{scope}"


def scope_tables(policy: EffectivePolicy) -> dict[str, str]:
    """Return the queries of the tables of the scopes, over `fact` and `status_period`."""
    queries = dict[str, str]()
    sums = {"points": exact("sum(granted)", policy.score_digits), "ratings": exact("sum(rating)", policy.rating_digits)}
    for name in policy.rules.scopes:
        query = _summed_query(policy, name) if policy.decays else scope_query(policy, name)
        queries[f"{_DAYS}{name}"] = statement("scope_days", scope=name, **sums)
        queries[scope_table(policy, name)] = f"{query}\nORDER BY user_id, value"
    return queries


def scope_query(policy: EffectivePolicy, scope: str, summed: str | None = None) -> str:
    """Return the query of what is shown within a scope: user_id, value, status and the columns of every view.

    summed: a table with the rows of the sums; None: compute them from `fact`.
    """
    shown = [
        f"{sql} AS {name}" for view in scope_views(policy, scope) for name, sql in shown_columns(view, policy).items()
    ]
    return statement("scope_shown", summed=summed or f"({_summed_query(policy, scope)})", shown=",\n    ".join(shown))


def scope_views_of_moment(policy: EffectivePolicy) -> dict[str, str]:
    """Return the queries of the views that scale the sums of scopes to a moment; none where points do not decay."""
    if not policy.decays:
        return {}
    return {scope_relation(name): scope_query(policy, name, scope_table(policy, name)) for name in policy.rules.scopes}


def define_scope_days(connection: duckdb.DuckDBPyConnection, scope: str | None) -> None:
    """Define the view `scope_day` over the days of all scopes of a warehouse, with the name of the scope.

    scope: the one that is asked for, if any. Raises UsageError, listing the scopes, if there is none of this name.
    """
    tables = connection.execute(statement("scope_day_tables")).fetchall()
    names = [name.removeprefix(_DAYS) for (name,) in tables]
    if scope is not None and scope not in names:
        known = _listed(names) if names else "the policy of the warehouse has none"
        raise UsageError(f"there is no scope {scope!r}{did_you_mean(scope, names) or f': {known}'}")
    days = [statement("scope_day_rows", scope=name) for name in names] or [statement("scope_day_none")]
    connection.execute(statement("scope_day_view", days="\nUNION ALL\n".join(days)))


def find_scope(policy: EffectivePolicy, name: str) -> str:
    """Return the name of a scope of a policy. Raises UsageError, listing the scopes, for another name.

    It may be a value that lacks its scope, so the message also says how to write one.
    """
    as_value = " or ".join(f"{scope}={name}" for scope in policy.rules.scopes)
    return _known_scope(policy, name, f"; a value is written as {as_value}")


def find_value(policy: EffectivePolicy, text: str) -> tuple[str, str]:
    """Return scope and value of a text such as `city=berlin`. Raises UsageError like `find_scope`, and for no value."""
    name, is_pair, value = text.partition("=")
    found = _known_scope(policy, name) if is_pair else find_scope(policy, name)
    if not value:
        raise UsageError(f"the scope {text!r} has no value: write it as {found}=VALUE")
    return found, value


def _known_scope(policy: EffectivePolicy, name: str, hint: str = "") -> str:
    scopes = list(policy.rules.scopes)
    if not scopes:
        raise UsageError(f"the policy {policy.name} has no scopes: leave out the scope {name!r}")
    if name not in scopes:
        meant = did_you_mean(name, sorted(scopes)) or f": {_listed(scopes)}{hint}"
        raise UsageError(f"the policy {policy.name} has no scope {name!r}{meant}")
    return name


def _listed(names: list[str]) -> str:
    return f"there are {', '.join(names)}" if len(names) > 1 else f"there is only {names[0]}"


def rows_of_value(rows: pl.DataFrame, scope: str, value: str) -> pl.DataFrame:
    """Return the rows of a scope with one value. Raises KarmalakeError, naming the closest value, if there are none."""
    found = rows.filter(pl.col("value") == value)
    if found.is_empty():
        known = rows["value"].unique().sort().to_list()
        raise KarmalakeError(f"no user has {scope}={value}: check the spelling{did_you_mean(value, known)}")
    return found


def of_known_value(connection: duckdb.DuckDBPyConnection, scope: str | None, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that `explain` has just returned on this connection, for a scope such as `city=berlin` if any.

    Raises KarmalakeError, naming the closest value, if the user has events, and none with this value. An event may have
    it and not be in the view: then no row is the answer.
    """
    if scope is None or not rows.is_empty():
        return rows
    name, _, value = scope.partition("=")
    query = statement("scope_values_explained", scope=name, most=str(_MAX_VALUES))
    values = [found for (found,) in connection.execute(query).fetchall()]
    if not values or value in values:
        return rows
    known = [found for found in values if found is not None]
    more = ", ..." if len(known) > _MAX_LISTED else ""
    listed = f": {_listed(known[:_MAX_LISTED])}{more}" if known else f": none has a value of {name}"
    raise KarmalakeError(f"no event of the user has {scope}{did_you_mean(value, known) or listed}")


def _summed_query(policy: EffectivePolicy, scope: str) -> str:
    """Return the query of a row per user and value with the sums, counts and measures of every view."""
    tallies, columns = view_sums(policy)
    return statement(
        "scope_summed",
        scope=scope,
        rank=f"rank_in_{scope}" if policy.rules.ranks_ratings else "CAST(NULL AS BIGINT)",
        weight="".join(f"\n            {column}," for column in rating_columns(policy)),
        recencies="".join(
            f",\n            recency_{number}_in_{scope} AS recency_{number}"
            for number, _ in enumerate(policy.rules.recencies_us)
        ),
        tallies=",\n        ".join(tallies),
        columns=",\n    ".join(columns),
    )
