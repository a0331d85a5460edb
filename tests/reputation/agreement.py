"""Comparing the SQL with the naive implementation, contribution by contribution and view by view."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache

import duckdb

from pipelines.reputation.merged_users import aliases
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.numbers import MICRO
from pipelines.reputation.scopes import scope_query
from pipelines.reputation.steps import define_steps, materialize_fact
from pipelines.reputation.views import reputation_query
from tests.reputation import naive
from tests.reputation.history import Event, at, events_table
from tests.reputation.merges import KEYS, Pair, stored

Row = tuple[object, ...]


def by_sql(
    events: Sequence[Event], policy: Policy, as_of: int, pairs: Sequence[Pair] = ()
) -> tuple[list[Row], list[Row]]:
    """Return contributions and scores from the SQL."""
    connection = _connection()
    connection.register("events", events_table(events))
    in_force = define_steps(connection, policy, at(as_of), known=aliases(stored(pairs)))
    connection.execute("CREATE OR REPLACE TEMP TABLE computed AS FROM contribution")
    connection.execute("CREATE OR REPLACE TEMP VIEW contribution AS FROM computed")
    materialize_fact(connection, in_force)
    rows = connection.sql(f"{reputation_query(in_force)} ORDER BY user_id").fetchall()
    query = "SELECT user_id, event_id, emission_no, t, reason, granted, rating, related_event_id FROM contribution"
    contributions = connection.sql(query).fetchall()
    for scope in in_force.rules.scopes:
        rows += connection.sql(f"{scope_query(in_force, scope)} ORDER BY user_id, value").fetchall()
    connection.unregister("events")
    return sorted(map(_comparable, contributions)), [_exact(row) for row in rows]


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    """Return one connection for all comparisons: opening one costs as much as a comparison."""
    return duckdb.connect(config={"threads": 1})


def by_hand(events: Iterable[Event], policy: Policy, as_of: int) -> tuple[list[Row], list[Row]]:
    """Return contributions and scores from the naive implementation."""
    users = naive.reputations(events, policy, as_of)
    contributions = [
        _comparable(
            (
                *(c.event.user_id, c.event.event_id or None, c.emission_no, c.event.t, c.reason),
                *(micro(c.granted), micro(c.rating), c.related),
            )
        )
        for reputation in users.values()
        for c in reputation.contributions
    ]
    scopes = [
        _row((user_id, value), users[user_id].status, views)
        for scope in next((list(reputation.scopes) for reputation in users.values()), [])
        for user_id in sorted(users)
        for value, views in sorted(users[user_id].scopes[scope].items())
    ]
    overall = [
        _row((user_id,), users[user_id].status, users[user_id].views, users[user_id].level or ())
        for user_id in sorted(users)
    ]
    return sorted(contributions), overall + scopes


def assert_agreement(events: Sequence[Event], policy: Policy, as_of: int, pairs: Sequence[Pair] = ()) -> None:
    """Assert that both agree on every event and every user, after merges of users."""
    contributions, rows = by_sql(events, policy, as_of, pairs)
    expected_contributions, expected_rows = by_hand(naive.resolved(events, pairs, KEYS), policy, as_of)
    assert contributions == expected_contributions
    assert [row[0] for row in rows] == [row[0] for row in expected_rows]
    for row, expected in zip(rows, expected_rows, strict=True):
        assert all(map(_same, row, expected)), (row, expected)


def _same(value: object, expected: object) -> bool:
    """Whole and decimal numbers are equal; floats may differ in the last digits of one, or be neighbours.

    Scores have twelve decimal places: neighbours are 1e-12 apart, and a little more or less as floats.
    """
    if isinstance(value, float) and expected is not None:
        return math.isclose(value, expected, rel_tol=1e-15, abs_tol=1.5e-12)  # type: ignore[arg-type]
    return value == expected


def micro(number: Fraction | None) -> int | None:
    if number is None:
        return None
    assert (number * MICRO).denominator == 1
    return int(number * MICRO)


def _comparable(row: Row) -> Row:
    """Make rows with nulls sortable."""
    return tuple((value is not None, value) if value is not None else (False, 0) for value in row)


def _exact(row: Row) -> Row:
    return tuple(value if isinstance(value, str | float | None) else Fraction(value) for value in row)


def _row(head: Row, status: str, views: dict[str, naive.Shown], level: Row = ()) -> Row:
    shown = [
        value
        for view in views.values()
        for value in (view.score, view.events, *view.measures.values(), view.rating_count)
    ]
    return (*head, status, *level, *shown)
