"""The tables of a warehouse as queries: one table set by user, and the trends by day computed from them.

Where points decay, `reputation` is a view over the table `reputation_sums`: time alone changes every score.
`trends_daily` is a view over the table `day_sums`.
Owns what a warehouse contains. `derive.py` creates the tables and keeps them current.
"""

from collections.abc import Mapping
from hashlib import sha256

import duckdb

from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.scopes import is_scope_table, scope_tables, scope_views_of_moment
from pipelines.reputation.sql import all_statements, statement
from pipelines.reputation.steps import step_statements
from pipelines.reputation.views import exact, exact_type, level_name, reputation_query, summed_query

ONLY_AFFECTED = "SEMI JOIN affected_user USING (user_id)"
"""Restricts a query with user_ids to the users that a refresh recomputes."""
SUMS = "reputation_sums"
"""The table that `reputation` is a view of where points decay."""
_USER_TABLES = frozenset(
    {"reputation", SUMS, "user_days", "user_reasons", "user_levels", "status_periods", "time_starts"}
    | {"user_ratings_given"}
)
"""A warehouse has either `reputation` or the sums as a table, `time_starts` if users earn points from time, and
`user_ratings_given` if a measure has a prior from all ratings."""
TABLES_BY_DAY = ("user_days", "user_reasons", "user_levels")
"""The tables of users that trends are computed from, which have a column `day`."""
DAY_SUMS: Mapping[str, tuple[str, ...]] = {
    "day_sums": ("day", "action_type"),
    "trends_reasons": ("day", "action_type", "reason"),
    "trends_levels": ("day", "level"),
    "day_scores": ("day", "score"),
}
"""The tables of sums over users by day, each with the columns that a row is of; all others are sums."""
SCORES = "trends_scores"


def user_tables(policy: EffectivePolicy, only: str = "") -> dict[str, str]:
    """Return the queries of the tables whose rows belong to one user each, over `fact` and `status_period`.

    only: a clause that restricts `status_periods` and `time_starts` to some users; `fact` has its own restriction.
    """
    sums = {"points": exact("sum(granted)", policy.score_digits), "ratings": exact("sum(rating)", policy.rating_digits)}
    return {
        "user_days": statement("table_user_days", **sums),
        "user_reasons": statement("table_user_reasons"),
        "user_levels": statement("table_user_levels", **_level_names(policy)),
        "status_periods": statement("table_status_periods", only=only),
        **({"time_starts": statement("table_time_starts", only=only)} if policy.has_time_points else {}),
        **({"user_ratings_given": statement("table_user_ratings_given", only=only)} if _learns(policy) else {}),
        **_scores(policy),
        **scope_tables(policy),
    }


def _level_names(policy: EffectivePolicy) -> dict[str, str]:
    return {"level": level_name(policy, "level_no"), "level_before": level_name(policy, "level_no_before")}


def is_user_table(name: str) -> bool:
    """Return whether the rows of a table belong to one user each."""
    return name in _USER_TABLES or is_scope_table(name)


def _scores(policy: EffectivePolicy) -> dict[str, str]:
    name, query = (SUMS, summed_query(policy)) if policy.decays else ("reputation", reputation_query(policy))
    return {name: f"{query}\nORDER BY user_id"}


def views_of_sums(policy: EffectivePolicy) -> dict[str, str]:
    """Return the queries of the views over sums: `trends_daily`, and of a moment, those that scale sums to it."""
    overall = {"reputation": reputation_query(policy, SUMS)} if policy.decays else {}
    return {"trends_daily": statement("table_trends_daily"), **overall, **scope_views_of_moment(policy)}


def trend_tables(policy: EffectivePolicy) -> dict[str, str]:
    """Return the queries of the trends, over the tables of the users."""
    return day_sums(policy, {name: name for name in TABLES_BY_DAY}) | {SCORES: score_trends("day_scores")}


def day_sums(policy: EffectivePolicy, sources: Mapping[str, str]) -> dict[str, str]:
    """Return the queries of DAY_SUMS.

    sources: for each of TABLES_BY_DAY a table with all rows of the users to sum over.
    """
    points, ratings = exact_type(policy.score_digits, 38), exact_type(policy.rating_digits, 38)
    return {
        "day_sums": statement("table_day_sums", points=points, ratings=ratings, **sources),
        "trends_reasons": statement("table_trends_reasons", **sources),
        "trends_levels": statement("table_trends_levels", **sources),
        "day_scores": statement("table_day_scores", score=exact_type(policy.score_digits), **sources),
    }


def score_trends(day_scores: str) -> str:
    """Return the query of SCORES from the rows of `day_scores` of some days."""
    return statement("table_trends_scores", day_scores=day_scores)


def weight_tables(policy: EffectivePolicy) -> dict[str, str]:
    """Return the queries of raters' weights and of priors, if any: DuckDB computes them, whatever the engine."""
    weights = {} if policy.rules.raters is None else {"rater_weights": statement("table_rater_weights")}
    return weights | ({"rating_priors": statement("table_rating_priors")} if _learns(policy) else {})


def _learns(policy: EffectivePolicy) -> bool:
    return policy.rules.has_global_prior


def recipe(policy: EffectivePolicy, lake_id: str) -> str:
    """Return a digest of everything that turns events into rows; a refresh needs the same one as the warehouse has.

    It covers the lake, DuckDB's version, the policy, and the SQL: all of it as written, macros included, and what is
    composed from it for the policy.
    """
    queries = [*step_statements(policy), *user_tables(policy).values(), *trend_tables(policy).values()]
    parts = [lake_id, duckdb.__version__, repr(policy), *all_statements(), *queries]
    return sha256("\0".join(parts).encode()).hexdigest()
