"""Priors of Bayesian means from the data: on each UTC day, the mean of all ratings given before it.

Owns when priors are computed and where they are: in the temporary table or view `rating_prior`, which step 15 joins;
the warehouse stores it as `rating_priors`. A user's mean uses the prior of the day of the user's latest rating, so that
midnight changes no score: only ratings do (decision 0023). A refresh adds to the sums of days what the affected users'
ratings add to them now, and takes away what they added before, which is stored as `user_ratings_given`. The formula is
`sql/priors.sql`, whole numbers throughout.
"""

from collections.abc import Iterable
from datetime import date

import duckdb
import numpy as np

from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.raters import weight_of_rating
from pipelines.reputation.sql import arrow_rows, one_row, statement
from pipelines.reputation.user_rows import UserRows, table_form

_GIVEN = "user_ratings_given"


def given_statement(policy: EffectivePolicy) -> str:
    """Return the step that defines `rating_given`, after `emitted`."""
    return statement(
        "rating_given",
        weight=weight_of_rating(policy) if policy.weighs_ratings else "CAST(1000000 AS BIGINT)",
        weights=statement("priors_weights") if policy.rules.raters is not None else "",
        readable=" AND event.rating_weight IS NOT NULL" if policy.reads_weights else "",
    )


def compute_priors(connection: duckdb.DuckDBPyConnection, steps: Iterable[str]) -> None:
    """Fill `rating_prior` for every day with ratings, from all events.

    steps: the statements that define the steps up to `rating_given` over all events. The tables, variables, macros and
    raters' weights of the policy must exist.
    """
    for step in steps:
        connection.execute(step)
    query = statement("priors_by_day", source="FROM rating_given")
    connection.execute(statement("priors_computed", query=query))


def use_stored_priors(connection: duckdb.DuckDBPyConnection, steps: Iterable[str]) -> None:  # noqa: ARG001 - as compute_priors
    """Read `rating_prior` from the warehouse of a connection."""
    connection.execute(statement("priors_stored"))


def update_priors(connection: duckdb.DuckDBPyConnection, stored: UserRows, users: np.ndarray) -> date | None:
    """Bring `rating_priors` up to date with the events in `affected_event`; return the first day whose sums changed.

    users: those of `affected_user`, as sorted hashes.
    The priors of the days after it are others now; None: no prior changed.
    """
    with arrow_rows(connection, stored.rows_of(_GIVEN, users)):
        connection.execute(statement("priors_change", columns=table_form(stored.columns[_GIVEN])))
    (first,) = one_row(connection.execute(statement("priors_first_change")))
    if first is not None:
        query = statement("priors_by_day", source=statement("priors_sums"))
        connection.execute(statement("priors_changed", query=query))
    return first
