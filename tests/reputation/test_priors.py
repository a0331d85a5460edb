"""Priors from all ratings: by hand, against the naive implementation, and after refreshes."""

from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.boundary.database import connect
from pipelines.errors import PolicyError
from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.scores import scores
from pipelines.reputation.sql import statement
from pipelines.reputation.warehouse import Warehouse
from pipelines.reputation.warehouse_tables import trend_tables
from tests.reputation.agreement import assert_agreement
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table
from tests.reputation.policies import EVENTS, policy
from tests.reputation.strategies import FEWER, ONE, histories
from tests.reputation.test_incremental import assert_refreshes_equal_rebuilds, lake, rebuilt, rows, stories

RULES = """
name = "learned"
version = "1"
windows_days = [2]
retraction = { actions = ["Withdrawn"], target = "target" }
scopes.city.from = "city"
[actions.Rated]
rating = { from = "stars", minimum = 1, maximum = 5 }
[measures]
rating_average = { formula = "bayesian", prior = "global", prior_mean = 4, prior_weight = 2 }
"""
LEARNED = {"m": {"formula": "bayesian", "prior": "global", "prior_mean": 2, "prior_weight": "1.5"}}
WEIGHED = {"weight": "trust", "seeds": "rita", "minimum": "0.5"}


def rated(user: str, stars: int, days_ago: float, **metadata: str) -> Event:
    name = f"{user}-{stars}-{days_ago}"
    return Event(name, user, "Rated", NOW - int(days_ago * DAY), {"stars": str(stars)} | metadata)


EARLY = [rated("ann", 5, 9.5), rated("bob", 2, 8.5, city="berlin"), rated("ann", 5, 7.5)]


def averages(rows: pl.DataFrame) -> dict[str, float]:
    """Return the all-time mean of each user."""
    return dict(rows.select("user_id", "all_time_rating_average").rows())


@pytest.mark.slow
def test_by_hand(tmp_path: Path) -> None:
    """A user's mean has the prior of the day of the latest rating, in scopes too, and an explanation names it."""
    withdrawn = Event("w", "ann", "Withdrawn", NOW - 3 * DAY // 2, {"target": "ann-5-9.5"})
    derive(
        lake(tmp_path, [[*EARLY, withdrawn, rated("cyd", 1, 0.5)]]), parse_policy(RULES), AS_OF, tmp_path / "w.duckdb"
    )
    with Warehouse(tmp_path / "w.duckdb") as warehouse:
        priors = warehouse.sql("SELECT prior FROM rating_priors ORDER BY day")["prior"].to_list()
        assert priors == [None, 5_000_000, 3_500_000, 4_000_000, 3_500_000]
        assert averages(warehouse.reputation()) == {
            "ann": (2 * 3.5 + 5) / 3,
            "bob": (2 * 5 + 2) / 3,
            "cyd": pytest.approx((2 * 3.5 + 1) / 3),
        }
        assert averages(warehouse.sql("FROM reputation_by_city")) == {"bob": 4}
        assert warehouse.explain("ann")["prior"].to_list() == [None, 3.5, None]
        assert "prior" not in warehouse.explain("ann", "default").columns


@pytest.mark.slow
@ONE
@given(histories(*EVENTS), st.sampled_from([{}, {"raters": WEIGHED}, {"scopes": {"city": {"from": "city"}}}]))
def test_the_sql_agrees_with_the_naive_implementation(events: list[Event], others: dict[str, object]) -> None:
    """With weights of raters, in scopes, with corrections and retractions."""
    assert_agreement(events, policy(measures=LEARNED, **others), NOW)


@pytest.mark.slow
@FEWER
@given(
    stories(histories("Rated", "Rated", "Starred", "Retracted", "Corrected", "Suspended")),
    st.sampled_from([{}, {"raters": WEIGHED}]),
)
def test_a_refresh_leaves_the_rows_of_a_rebuild(
    story: list[tuple[list[Event], int]], others: dict[str, object]
) -> None:
    """Late ratings and retractions change the priors of other users (`incremental-equals-rebuild`)."""
    assert_refreshes_equal_rebuilds(story, policy(measures=LEARNED, **others))


@pytest.mark.slow
def test_who_is_affected(tmp_path: Path) -> None:
    """Midnight changes no one, a rating of the newest day its user only, a late one the users rated after its day."""
    path, rules, commits = tmp_path / "w.duckdb", parse_policy(RULES), [EARLY, *_later()]
    affected: list[int] = []
    with open_draft(path) as draft:
        draft.refresh(lake(tmp_path, commits[:1]), rules, at(NOW - DAY))
        assert draft.refresh(lake(tmp_path, commits[:1]), rules, at(NOW)).affected_users == 0
        for number in range(2, len(commits) + 1):
            derived = draft.refresh(lake(tmp_path, commits[:number]), rules, at(NOW))
            assert derived.rebuild_reason is None
            affected.append(derived.affected_users)
        draft.publish()
    assert affected == [1, 1, 3]
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), rules, NOW)


def _later() -> list[list[Event]]:
    return [[rated("cyd", 1, 0.5)], [rated("dan", 3, 0.4)], [rated("bob", 5, 2.5)]]


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ('{ formula = "mean", prior = "global" }', "prior belongs to bayesian, and the formula is mean: remove it"),
        ('{ formula = "bayesian", prior = "local", prior_mean = 3, prior_weight = 1 }', "global"),
        ('{ formula = "bayesian", prior = "global", prior_weight = 1 }', "bayesian needs prior_mean and prior_weight"),
    ],
)
def test_mistakes_are_explained(measure: str, message: str) -> None:
    """A prior of another formula, an unknown one, and none for the time before the first rating."""
    with pytest.raises(PolicyError, match=message):
        _ = _parsed(measure)


def _parsed(measure: str) -> Policy:
    return parse_policy(f"{RULES.partition('[measures]')[0]}[measures]\nm = {measure}")


def test_the_example_of_the_page() -> None:
    """The numbers of policies/README.md, under "Priors"."""
    events = [rated("ann", 5, 6.5), rated("bob", 2, 5.5)]
    assert {user: round(mean, 2) for user, mean in _averages(events).items()} == {"ann": 4.33, "bob": 4}
    assert _averages([*events, rated("ann", 5, 4.5)])["ann"] == 4.25


_MOST = 9 * 10**18
_GIVEN = """
CREATE TEMP VIEW emitted AS
SELECT user_id, '' AS event_id, t, 0 AS emission_no, true AS matched, CAST(1000000 AS BIGINT) AS rating
FROM (VALUES ('ann'), ('ann'), ('bob')) AS rated (user_id), (VALUES (0), (86400000000)) AS times (t)
"""
_NONE = "CREATE TEMP VIEW {} AS SELECT user_id, event_id, event_id AS retracted_by, t FROM emitted WHERE false"


def test_sums_over_users_have_no_bound_in_practice() -> None:
    """Weights of a user's day, of a day and of all days, and points of a day; each row fills the type of one."""
    with connect() as connection:
        connection.execute(_GIVEN)
        for view in ("retracted_event", "known_event"):
            connection.execute(_NONE.format(view))
        for macro in ("utc_day", "floor_divide", "round_half_up", "round_half_even"):
            connection.execute(statement(f"macro_{macro}"))
        weight = f"CAST({_MOST} AS BIGINT)"
        connection.execute(statement("rating_given", weight=weight, weights="", readable=""))
        priors = connection.sql(statement("priors_by_day", source="FROM rating_given")).fetchall()
        connection.execute(
            "CREATE TEMP TABLE user_days AS SELECT DATE '2026-01-01' AS day, 'a' AS action_type, 1 AS events,"
            " 1 AS counted, CAST(900000000000 AS DECIMAL(18, 6)) AS points, 1 AS rating_sum, 1 AS rating_count"
            " FROM range(2)"
        )
        rules = policy(actions={"Rated": {"points": "0.000001"}}).at(AS_OF)
        (sums,) = connection.sql(trend_tables(rules)["day_sums"]).fetchall()
    assert [(row[2], row[4]) for row in priors] == [(3 * _MOST, None), (3 * _MOST, 1_000_000)]
    assert sums[6] == 1_800_000_000_000


def _averages(events: list[Event]) -> dict[str, float]:
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        return averages(scores(connection, parse_policy(RULES), AS_OF))
