"""The tables of a warehouse as queries: those of each user, and the trends by day that are made from them.

Owns what is in a warehouse. How its tables come up to date is `derive.py`'s affair.
"""

from hashlib import sha256

import duckdb

from pipelines.reputation.policy import InForce
from pipelines.reputation.sql import statement
from pipelines.reputation.stages import steps
from pipelines.reputation.views import exact, exact_type, reputation_query

OF_TOUCHED = "SEMI JOIN touched_user USING (user_id)"
"""Narrows a query with user_ids to the users that a refresh computes anew."""
_OF_DAYS = "WHERE day IN (FROM pending_day)"
_OF_USERS = "WHERE user_id IN (SELECT user_id FROM user_days WHERE day IN (FROM pending_day))"


def user_tables(policy: InForce, only: str = "") -> dict[str, str]:
    """Return the queries of the tables that hold rows of one user each, over `fact` and `status_period`."""
    sums = {"points": exact("sum(granted)", policy.score_digits), "ratings": exact("sum(rating)", policy.rating_digits)}
    return {
        "user_days": statement("user_days", **sums),
        "user_reasons": statement("user_reasons"),
        "status_periods": statement("status_periods", only=only),
        "reputation": reputation_query(policy),
    }


def trends(policy: InForce) -> dict[str, str]:
    """Return the queries of the trends, over the tables of the users."""
    return _trends(policy, "", "")


def pending_trends(policy: InForce) -> dict[str, str]:
    """Return the queries of the trends for the days in `pending_day` alone."""
    return _trends(policy, _OF_DAYS, _OF_USERS)


def _trends(policy: InForce, of_days: str, of_users: str) -> dict[str, str]:
    score = exact_type(policy.score_digits)
    return {
        "trends_daily": statement("trends_daily", exact=score, of_days=of_days),
        "trends_reasons": statement("trends_reasons", of_days=of_days),
        "trends_scores": statement("trends_scores", exact=score, of_days=of_days, of_users=of_users),
    }


def recipe(policy: InForce, lake_id: str) -> str:
    """Return a digest of all that decides how rows come from events: what was made otherwise cannot be continued."""
    queries = [*user_tables(policy).values(), *trends(policy).values()]
    parts = [lake_id, duckdb.__version__, repr(policy), *steps(policy), *queries]
    return sha256("\0".join(parts).encode()).hexdigest()
