"""The shipped policies: cases computed by hand, and real data where the rules are public."""

import csv
from datetime import datetime
from typing import Any

import duckdb
import pytest

from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.scores import scores
from tests.conftest import SHARED_DATA
from tests.reputation.agreement import assert_agreement, by_sql
from tests.reputation.history import AS_OF, DAY, NOW, Event, events_table, us

START = NOW - 10 * DAY
EXCHANGE = SHARED_DATA / "stackexchange-quantumcomputing-2018" / "events.csv"


def row(policy: str, *events: Event) -> dict[str, Any]:
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        return scores(connection, load_policy(policy), AS_OF).row(0, named=True)


def event(number: int, action_type: str, t: int = START, **metadata: str) -> Event:
    return Event(f"e{number:04}", "ann", action_type, t, metadata)


def test_stackexchange_caps_votes_but_not_acceptances() -> None:
    """25 upvoted answers are 250, capped to 200 with a downvote making room; 15 and 2 and bounties come on top of 1."""
    votes = [event(i, "answer_upvoted", START + i) for i in range(25)] + [event(90, "question_downvoted")]
    others = [event(91, "answer_accepted"), event(92, "accepted_an_answer"), event(93, "bounty_awarded", amount="50")]
    assert row("stackexchange-2018", *votes, *others)["all_time_score"] == 1 + 200 + 15 + 2 + 50
    assert row("stackexchange-2018", *votes[:3], votes[-1])["all_time_score"] == 1 + 30 - 2


def test_stackexchange_never_shows_less_than_one() -> None:
    """Offering a bounty of 50 with nothing leaves the starting score of 1."""
    assert row("stackexchange-2018", event(1, "bounty_offered", amount="50"))["all_time_score"] == 1
    assert row("stackexchange-2018", event(1, "bounty_offered", amount="50"))["last_30_days_score"] == -50


def rides(ratings: list[str], completed: bool = True) -> list[Event]:
    rated = [event(i, "DriverRated", START + i, rating=rating, ride_id=str(i)) for i, rating in enumerate(ratings)]
    done = [event(5000 + i, "TransactionCompleted", START + i, ride_id=str(i)) for i in range(len(ratings))]
    return rated + done * completed


def test_ride_hailing_shows_the_mean_of_the_last_500() -> None:
    """501 ratings, the first one bad: it no longer counts. One more bad one pushes out a good one."""
    assert row("ride-hailing", *rides(["1"] + ["5"] * 500))["all_time_rating_average"] == 5.0
    shown = row("ride-hailing", *rides(["1"] + ["5"] * 500 + ["1"]))
    assert (shown["all_time_rating_average"], shown["all_time_rating_count"]) == ((499 * 5 + 1) / 500, 502)


@pytest.mark.parametrize(
    ("ratings", "shown"),
    [
        (["1"] * 4, 5.0),
        (["1"] * 5, 1.0),
        (["5", "5", "4", "4", "4", "4"], 4.33),
        (["1"] * 10 + ["5"] * 50, 5.0),
        (["5", "4"] * 4, 4.5),
        (["5"] * 7 + ["4"], 4.88),
    ],
)
def test_ride_hailing_last_50(ratings: list[str], shown: float) -> None:
    """Fewer than five show 5.0, else the mean of the latest 50 to two decimals (4.875 is 4.88)."""
    assert row("ride-hailing-last-50", *rides(ratings))["all_time_rating_average"] == shown


def test_ride_hailing_last_50_needs_completed_rides() -> None:
    """Ten bad ratings of uncompleted rides leave a beginner's 5.0."""
    shown = row("ride-hailing-last-50", *rides(["1"] * 10, completed=False))
    assert (shown["all_time_rating_average"], shown["all_time_rating_count"]) == (5.0, 0)


def test_marketplace_feedback() -> None:
    """Of a buyer's two in one week the later one counts; the share looks at twelve months and leaves out neutrals."""
    reviews = [
        event(1, "ReviewPosted", START, rating="1", rater_id="bob"),
        event(2, "ReviewPosted", START + 1, rating="5", rater_id="bob"),
        event(3, "ReviewPosted", START + 2, rating="2", rater_id="cid"),
        event(4, "ReviewPosted", START + 3, rating="3", rater_id="dan"),
        event(5, "ReviewPosted", START + 4, rating="4", rater_id="eve"),
        event(6, "ReviewPosted", NOW - 400 * DAY, rating="2", rater_id="eve"),
    ]
    shown = row("marketplace-feedback", *reviews)
    assert shown["all_time_score"] == 2 - 2
    assert (shown["all_time_positives"], shown["all_time_negatives"]) == (2, 2)
    assert shown["last_365_days_positive_share"] == 0.667


def test_decayed_karma() -> None:
    """8 points of 90 days ago are 4; a loss of a year ago is forgiven; a fresh one may not lead below zero."""
    old = [event(1, "UserRated", NOW - 90 * DAY, rating="8"), event(2, "UserRated", NOW - 365 * DAY, rating="-10")]
    assert row("decayed-karma", *old)["all_time_score"] == 4.0
    fresh = event(3, "UserRated", NOW - 1, rating="-10")
    assert row("decayed-karma", *old, fresh)["all_time_score"] == 0.0


def exchange_events() -> list[Event]:
    with EXCHANGE.open(newline="") as file:
        return [
            Event(
                event_id=line["event_id"],
                user_id=line["user_id"],
                action_type=line["action_type"],
                t=us(datetime.fromisoformat(line["timestamp"])),
                metadata={"post_id": line["post_id"]} | ({"amount": line["amount"]} if line["amount"] else {}),
            )
            for line in csv.DictReader(file)
        ]


@pytest.mark.slow
@pytest.mark.skipif(not EXCHANGE.exists(), reason=f"the Stack Exchange data are not at {EXCHANGE}")
def test_stackexchange_on_real_data() -> None:
    """Every user of quantumcomputing.stackexchange.com has the score computed by hand, and each rule matters."""
    events, as_of = exchange_events(), us(datetime.fromisoformat("2018-09-03T00:00:00Z"))
    policy = load_policy("stackexchange-2018")
    assert_agreement(events, policy, as_of)
    _, rows = by_sql(events, policy, as_of)
    for removed in (
        {"caps": {}},
        {"actions": without(policy, "answer_accepted")},
        {"actions": without(policy, "bounty")},
    ):
        version = policy.versions[0].model_dump(exclude_unset=True, by_alias=True) | removed
        without_rule = Policy.model_validate({"name": "poorer", "versions": [version]})
        assert by_sql(events, without_rule, as_of)[1] != rows


def without(policy: Policy, start: str) -> dict[str, Any]:
    actions = policy.versions[0].model_dump(exclude_unset=True, by_alias=True)["actions"]
    return {name: action for name, action in actions.items() if not name.startswith(start)}
