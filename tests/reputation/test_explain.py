"""Explanations add up, and as_of and known_at select events."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given

from pipelines.reputation.compare import compare_policies
from pipelines.reputation.derive import derive
from pipelines.reputation.explain import explain, explain_change
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy, parse_policy
from pipelines.reputation.scores import scores
from pipelines.reputation.warehouse import open_warehouse
from tests.reputation import policies
from tests.reputation.agreement import _connection
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table, snapshot_of, stored_schema, us
from tests.reputation.strategies import FEWER, histories
from tests.reputation.test_bitcoin_otc import pytestmark as needs_otc
from tests.reputation.test_bitcoin_otc import ratings

RULES = """
name = "rules"
version = "7"
windows_days = [7]
score = { start = 1, floor = 1 }
[status]
suspend = ["Suspended"]
reinstate = ["Reinstated"]
[caps.votes]
period = "day"
maximum = 25
[actions.Up]
points = 10
[actions.Down]
points = -50
penalties_expire_after_days = 5
"""
EVENTS = [
    Event("a", "ann", "Up", NOW - 9 * DAY),
    Event("b", "ann", "Up", NOW - 9 * DAY + 1),
    Event("c", "ann", "Up", NOW - 9 * DAY + 2),
    Event("d", "ann", "Down", NOW - 8 * DAY),
    Event("e", "ann", "Waved", NOW - 7 * DAY),
    Event("z", "bob", "Up", NOW - 7 * DAY),
]


def explained(as_of: int = NOW) -> pl.DataFrame:
    with duckdb.connect() as connection:
        connection.register("events", events_table(EVENTS))
        return explain(connection, parse_policy(RULES), "ann", at(as_of))


def test_explaining_reads_the_lake_once() -> None:
    """The user's events are read once, regardless of the number of steps."""
    with duckdb.connect() as connection:
        connection.register("stored", events_table(EVENTS))
        connection.execute("CREATE SEQUENCE looks; CREATE VIEW events AS FROM stored WHERE nextval('looks') > 0")
        rows = explain(connection, parse_policy(RULES), "ann", at(NOW))
        assert rows.equals(explained())
        events_of_ann = sum(event.user_id == "ann" for event in EVENTS)
        assert connection.execute("SELECT currval('looks')").fetchone() == (events_of_ann,)


@pytest.mark.slow
@FEWER
@given(histories(*policies.EVENTS), policies.versioned_policies())
def test_contributions_add_up_to_the_score(events: list[Event], policy: Policy) -> None:
    """For every user, under any policy, `earned` sums to the served score, and the running score ends there."""
    connection = _connection()
    connection.register("events", events_table(events))
    for row in scores(connection, policy, AS_OF).iter_rows(named=True):
        ledger = explain(connection, policy, row["user_id"], AS_OF)
        total = sum(ledger["earned"].to_list(), Decimal(0))
        assert abs(total - Decimal(str(row["all_time_score"]))) < Decimal("1e-9")
        assert ledger.height == 0 or total == ledger["score"].to_list()[-1]
        assert policy.at(AS_OF).decays or total == row["all_time_score"]
    connection.unregister("events")


@pytest.mark.slow
@FEWER
@given(histories(*policies.EVENTS), policies.scopes(), policies.everything())
def test_contributions_add_up_within_a_scope(
    events: list[Event], scopes: dict[str, Any], others: dict[str, Any]
) -> None:
    """For every user and value, `earned` sums to the score there (`explainable`)."""
    connection, rules = _connection(), policies.policy(**others | {"scopes": scopes})
    connection.register("events", events_table(events))
    for name in scopes:
        for row in scores(connection, rules, AS_OF, scope=name).iter_rows(named=True):
            ledger = explain(connection, rules, row["user_id"], AS_OF, scope=f"{name}={row['value']}")
            total = sum(ledger["earned"].to_list(), Decimal(0))
            assert abs(total - Decimal(str(row["all_time_score"]))) < Decimal("1e-9")
            assert rules.at(AS_OF).decays or total == row["all_time_score"]
    connection.unregister("events")


def test_each_contribution_has_its_reason() -> None:
    """Granted, capped by which rule, expired, without a rule; the start is a row of its own."""
    rows = explained().select("event_id", "policy_version", "reason", "rule", "points", "earned", "score").rows()
    assert rows == [
        (None, None, "start", None, None, 1, 1),
        ("a", "7", "granted", None, 10, 10, 11),
        ("b", "7", "granted", None, 10, 10, 21),
        ("c", "7", "capped", "votes", 10, 5, 26),
        ("d", "7", "expired", None, -50, 0, 26),
        ("e", None, "no rule", None, None, 0, 26),
    ]


def test_a_retracted_event_and_its_retraction_name_each_other() -> None:
    """So do a correction and its event; a change of reason names the retraction, too."""
    retraction = Event("r", "ann", "Retracted", NOW - DAY, {"target_event_id": "a"})
    correction = Event("k", "ann", "Corrected", NOW - DAY + 1, {"target_event_id": "b"})
    rules = parse_policy(RULES + "[retraction]\nactions = ['Retracted']\n[correction]\nactions = ['Corrected']\n")
    with duckdb.connect() as connection:
        connection.register("events", events_table([*EVENTS, retraction, correction]))
        rows = explain(connection, rules, "ann", AS_OF).filter(pl.col("related_event_id").is_not_null())
        change = explain_change(connection, rules, "ann", AS_OF - timedelta(days=2), AS_OF)
    assert rows.select("event_id", "reason", "related_event_id").rows() == [
        ("a", "retracted", "r"),
        ("r", "retraction", "a"),
        ("k", "correction", "b"),
    ]
    assert change.filter(event_id="a").select("reason_before", "reason", "related_event_id").rows() == [
        ("granted", "retracted", "r")
    ]


def test_a_floor_is_a_row_of_its_own() -> None:
    """Before the penalty expired, the floor lifted the score from -24 to 1."""
    rows = explained(NOW - 8 * DAY + 1).select("reason", "earned", "score").rows()
    assert rows[-2:] == [("granted", -50, -24), ("bounds", 25, 1)]


def test_a_user_without_events_has_an_empty_explanation() -> None:
    """Only the start that all users have is listed."""
    with duckdb.connect() as connection:
        connection.register("events", events_table(EVENTS))
        assert explain(connection, load_policy("default"), "nobody", AS_OF).height == 0


def test_a_change_lists_added_and_expired_contributions() -> None:
    """Between the day after the penalty and now it expired; the floor is no longer needed."""
    with duckdb.connect() as connection:
        connection.register("events", events_table(EVENTS))
        changes = explain_change(connection, parse_policy(RULES), "ann", at(NOW - 8 * DAY + 1), AS_OF)
    assert changes.select("event_id", "reason_before", "reason", "change").rows() == [
        ("d", "granted", "expired", 50),
        ("e", None, "no rule", 0),
        (None, "bounds", None, -25),
    ]


@pytest.mark.slow
def test_as_of_and_known_at_differ(tmp_path: Path) -> None:
    """A late event counts at its event time today, and did not count before it was committed."""
    late = Event("late", "ann", "TransactionCompleted", NOW - 5 * DAY, batch_id="second")
    early = Event("early", "ann", "TransactionCompleted", NOW - 6 * DAY, batch_id="first")
    committed = [("first", NOW - 4 * DAY), ("second", NOW - DAY)]
    rows = [{"batch_id": batch, "version": 1, "committed": t} for batch, t in committed]
    commits = pa.Table.from_pylist(rows, stored_schema("commits"))
    snapshot = snapshot_of(tmp_path / "lake", [late, early], commits=commits)
    policy, then = load_policy("default"), AS_OF - timedelta(days=3)
    assert scores(snapshot, policy, then)["all_time_score"].to_list() == [2]
    assert scores(snapshot, policy, then, known_at=then)["all_time_score"].to_list() == [1]
    assert scores(snapshot, policy, then, known_at=at(committed[0][1])).height == 0
    derive(snapshot, policy, AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as warehouse:
        assert warehouse.explain("ann")["event_id"].to_list() == ["early", "late"]
        assert warehouse.as_of(then, known_at=then).explain("ann")["event_id"].to_list() == ["early"]
        assert warehouse.as_of(known_at=at(committed[1][1] + 1)).scores()["all_time_score"].to_list() == [2]
        assert warehouse.explain_change("ann", AS_OF - timedelta(days=6))["change"].to_list() == [1, 1]
        assert warehouse.reputation()["all_time_score"].to_list() == [2]


def test_two_policies_are_compared_before_anything_is_published() -> None:
    """Changes of score and rank, largest first."""
    changed = parse_policy(RULES.replace("points = 10", "points = 30").replace("maximum = 25", "maximum = 30"))
    with duckdb.connect() as connection:
        connection.register("events", events_table(EVENTS))
        frame = compare_policies(connection, parse_policy(RULES), changed, AS_OF)
    assert frame.columns == ["user_id", "score_before", "score_after", "change", "rank_before", "rank_after"]
    assert frame.rows() == [("bob", 11, 31, 20, 2, 1), ("ann", 26, 31, 5, 1, 1)]


@pytest.mark.slow
@needs_otc
def test_contributions_add_up_for_every_user_of_bitcoin_otc() -> None:
    """At five dates, for all users at once: the contributions are the scores."""
    policy = load_policy("default")
    with duckdb.connect() as connection:
        connection.register("events", events_table(ratings()))
        for year in range(2011, 2016):
            shown = scores(connection, policy, at(us(AS_OF.replace(year=year, month=1))))
            query = "SELECT user_id, sum(earned) // 1000000 FROM contribution GROUP BY user_id ORDER BY user_id"
            assert connection.sql(query).fetchall() == shown.select("user_id", "all_time_score").rows()
        ledger = explain(connection, policy, "35", AS_OF)
        assert ledger["score"].to_list()[-1] == sum(ledger["earned"]) == ledger["points"].sum()
