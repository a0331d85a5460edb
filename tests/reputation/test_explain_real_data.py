"""Explanations of real histories: for every user of both data sets, at five dates, they add up (`explainable`)."""

from datetime import UTC, datetime
from decimal import Decimal

import duckdb
import polars as pl
import pytest

from pipelines.reputation.explain import explain, explain_all
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy, parse_policy
from pipelines.reputation.scores import scores
from tests.conftest import SHARED_DATA
from tests.reputation.history import events_table
from tests.reputation.test_bitcoin_otc import KARMA, ratings
from tests.reputation.test_shipped_policies import exchange_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED_DATA / "bitcoin-otc").exists(), reason=f"the real data are not at {SHARED_DATA}"),
]
BITCOIN_DATES = ["2011-06-01", "2012-01-01", "2013-01-01", "2014-01-01", "2016-02-01"]
EXCHANGE_DATES = ["2018-03-20", "2018-04-15", "2018-06-01", "2018-07-15", "2018-09-03"]


def midnight(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def assert_adds_up(connection: duckdb.DuckDBPyConnection, policy: Policy, as_of: datetime) -> None:
    """Compare the sum of what is listed for each user with the score; one user in 500 is also explained alone."""
    served = scores(connection, policy, as_of).select("user_id", "all_time_score")
    assert served.height > 10
    listed = explain_all(connection, policy, as_of)
    sums = listed.group_by("user_id").agg(pl.col("earned").sum())
    both = served.join(sums, on="user_id", how="left").with_columns(pl.col("earned").fill_null(0))
    assert both.height == served.height
    for user_id, score, earned in both.rows():
        assert Decimal(earned) == Decimal(score) or abs(float(earned) - score) < 1e-12, user_id
    for user_id in served["user_id"][::500]:
        alone = explain(connection, policy, user_id, as_of)
        assert alone.equals(listed.filter(pl.col("user_id") == user_id).drop("user_id"))


@pytest.mark.parametrize("rules", ["default", KARMA], ids=["default", "decayed"])
@pytest.mark.parametrize("as_of", BITCOIN_DATES)
def test_bitcoin_otc(rules: str, as_of: str) -> None:
    """Sums of ratings, and ratings that lose half their weight in 90 days."""
    policy = parse_policy(rules) if "\n" in rules else load_policy(rules)
    with duckdb.connect() as connection:
        connection.register("events", events_table(ratings()))
        assert_adds_up(connection, policy, midnight(as_of))


@pytest.mark.parametrize("as_of", EXCHANGE_DATES)
def test_stack_exchange(as_of: str) -> None:
    """Votes under a daily cap, acceptances, bounties, and a floor of 1."""
    with duckdb.connect() as connection:
        connection.register("events", events_table(exchange_events()))
        assert_adds_up(connection, load_policy("stackexchange-2018"), midnight(as_of))
