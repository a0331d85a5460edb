"""Measures: every formula against the naive implementation and against numbers computed by hand."""

from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation.scores import scores
from tests.reputation.agreement import assert_agreement
from tests.reputation.history import AS_OF, DAY, NOW, Event, events_table
from tests.reputation.policies import EVENTS, measures, policy
from tests.reputation.strategies import histories


@pytest.mark.slow
@given(histories(*EVENTS), st.dictionaries(st.sampled_from(["rating_average", "a", "b"]), measures(), min_size=1))
def test_the_sql_agrees_with_the_naive_implementation(events: list[Event], tables: dict[str, Any]) -> None:
    """Any measures side by side, in every view, are the same."""
    assert_agreement(events, policy(measures=tables), NOW)


def shown(ratings: list[str], **measure: Any) -> Any:
    """Return the all-time value of a measure over ratings, oldest first."""
    events = [
        Event(f"e{i}", "ann", "Rated", NOW - 9 * DAY + i, {"rating": rating}) for i, rating in enumerate(ratings)
    ] or [Event("e", "ann", "Done", NOW - 1)]
    with duckdb.connect() as connection:
        connection.register("events", events_table(reversed(events)))
        return scores(connection, policy(measures={"m": measure}), AS_OF)["all_time_m"][0]


STARS = {"positive_from": 4, "negative_to": 2}


@pytest.mark.parametrize(
    ("ratings", "measure", "value"),
    [
        ([], {"formula": "mean"}, None),
        (["5", "4"], {"formula": "mean"}, 4.5),
        (["5", "1", "2"], {"formula": "mean", "last": 2}, 1.5),
        (["5", "5", "4"], {"formula": "mean", "digits": 2}, 4.67),
        (["5", "4"], {"formula": "mean", "digits": 0}, 5),
        (["5", "4"], {"formula": "mean", "digits": 0, "rounding": "half_even"}, 4),
        (["-5", "-4"], {"formula": "mean", "digits": 0}, -4),
        (["-5", "-4"], {"formula": "mean", "digits": 0, "rounding": "floor"}, -5),
        (["5", "5", "4"], {"formula": "mean", "digits": 1, "rounding": "ceiling"}, 4.7),
        (["1"] * 4, {"formula": "mean", "minimum_count": 5, "below_minimum": 5}, 5.0),
        (["1"] * 5, {"formula": "mean", "minimum_count": 5, "below_minimum": 5}, 1.0),
        (["1"] * 4, {"formula": "mean", "minimum_count": 5, "default": 5}, None),
        (["5", "1", "2"], {"formula": "median"}, 2),
        (["5", "1", "2", "4"], {"formula": "median"}, 3),
        (["-5", "-1", "-2", "4"], {"formula": "median"}, -1.5),
        (["5", "1", "2", "4"], {"formula": "median", "last": 3}, 2),
        (["5", "4"], {"formula": "median", "digits": 0}, 5),
        ([], {"formula": "median"}, None),
        (["5"], {"formula": "bayesian", "prior_mean": 3, "prior_weight": 3}, 3.5),
        (["5", "5", "1"], {"formula": "beta", "positive_from": 1}, 0.8),
        (["5", "5", "-1"], {"formula": "beta", "positive_from": 1}, 0.6),
        (["5", "3", "3", "1"], {"formula": "share"} | STARS, 0.5),
        (["5", "3", "3", "1"], {"formula": "share", "positive_from": 4}, 0.25),
        (["3"], {"formula": "share"} | STARS, None),
        (["5", "4", "3", "1"], {"formula": "positives"} | STARS, 2),
        (["5", "4", "3", "1"], {"formula": "negatives"} | STARS, 1),
        ([], {"formula": "positives"} | STARS, 0),
        (["5"] * 10, {"formula": "wilson", "positive_from": 4, "digits": 4}, 0.7225),
        (["5"] * 8 + ["1"] * 2, {"formula": "wilson", "positive_from": 4, "digits": 4}, 0.4902),
        (["1"], {"formula": "wilson", "positive_from": 4, "rounding": "floor", "digits": 9}, 0.0),
    ],
)
def test_by_hand(ratings: list[str], measure: Any, value: Any) -> None:
    """Computed by hand; the two Wilson bounds are those of the usual tables for 10/10 and 8/10 at 95 %."""
    assert shown(ratings, **measure) == value


HALVED = {"formula": "mean", "half_life_days": 2}


@pytest.mark.parametrize(
    ("ages", "measure", "value"),
    [
        ({"5": 3, "1": 1}, {}, (5 * 1 + 1 * 2) / 3),
        ({"5": 103, "1": 101}, {}, (5 * 1 + 1 * 2) / 3),
        ({"5": 9, "2": 5, "1": 1}, {}, (5 * 1 + 2 * 4 + 1 * 16) / 21),
        ({"5": 9, "2": 5, "1": 1}, {"last": 2}, (2 * 1 + 1 * 4) / 5),
        ({"5": 64, "2": 2, "1": 0.5}, {"minimum_count": 3}, None),
    ],
)
def test_a_recent_rating_counts_more(ages: dict[str, float], measure: Any, value: float | None) -> None:
    """Half as much for each half-life that a rating is behind the latest one, whatever the age of that one.

    A rating of more than 31 half-lives before the latest weighs less than half a billionth, so it is in no measure.
    """
    events = [
        Event(f"e{rating}", "ann", "Rated", NOW - int(age * DAY), {"rating": rating}) for rating, age in ages.items()
    ]
    with duckdb.connect() as connection:
        connection.register("events", events_table([*events, Event("later", "ann", "Done", NOW - 1)]))
        row = scores(connection, policy(windows_days=[6], measures={"m": HALVED | measure}), AS_OF).row(0, named=True)
    assert row["all_time_m"] == (None if value is None else pytest.approx(value, rel=1e-9))


def test_the_last_n_are_by_event_time_then_the_row_of_the_source() -> None:
    """Rows are numbers, not texts, and an event without one comes before the others of its time."""
    rows = [("c", "5", {}), ("a", "1", {"row": "10"}), ("b", "2", {"row": "9"}), ("d", "4", {"row": "8"})]
    events = [Event(i, "ann", "Rated", NOW - DAY, {"rating": r} | row) for i, r, row in rows]
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        rules = policy(order_by="row", measures={"rating_average": {"formula": "mean", "last": 2}})
        assert scores(connection, rules, AS_OF)["all_time_rating_average"][0] == 1.5


def test_the_last_n_are_by_event_time_then_event_id() -> None:
    """Neither arrival nor the rating's value determines which ratings are the latest."""
    t = NOW - DAY
    events = [Event(i, "ann", "Rated", t, {"rating": r}) for i, r in [("c", "1"), ("a", "2"), ("b", "3")]]
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        rules = policy(measures={"rating_average": {"formula": "mean", "last": 2}})
        row = scores(connection, rules, AS_OF).row(0, named=True)
    assert (row["all_time_rating_average"], row["all_time_rating_count"]) == (2.0, 3)
