"""Levels: by hand, in the document, in an explanation, by day, and against the naive implementation."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PolicyError
from pipelines.reputation.derive import derive
from pipelines.reputation.documents import documents
from pipelines.reputation.explain import explain
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.scores import scores
from pipelines.reputation.warehouse import Warehouse
from tests.reputation import policies
from tests.reputation.agreement import assert_agreement
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table, snapshot_of
from tests.reputation.policies import EVENTS, policy
from tests.reputation.strategies import histories

HEAD = """
name = "levels"
version = "1"
windows_days = []
status = { suspend = ["Suspended"], reinstate = ["Reinstated"], rule = "hide", shown = 0 }
retraction = { actions = ["Retracted"] }
[actions.Moved]
points = { from = "by" }
"""
LEVELS = "[levels]\nbronze = 10\nsilver = { at = 20, falls_below = 15 }\ngold = 30\n"


def moves(*amounts: int, user_id: str = "ann") -> list[Event]:
    """Return events that move a score, a day apart, the last one a day before now."""
    first = NOW - len(amounts) * DAY
    return [Event(f"{user_id}-{n}", user_id, "Moved", first + n * DAY, {"by": str(by)}) for n, by in enumerate(amounts)]


def level_of(events: list[Event], rules: str = HEAD + LEVELS, as_of: int = NOW) -> tuple[Any, Any, Any]:
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        row = scores(connection, parse_policy(rules), at(as_of)).row(0, named=True)
    return row["level"], row["next_level"], row["points_to_next_level"]


@pytest.mark.slow
@settings(max_examples=15)
@given(
    histories(*EVENTS), policies.levels(), policies.scores(), st.sampled_from([{}, {"penalties_expire_after_days": 7}])
)
def test_levels_agree(
    events: list[Event], levels: dict[str, Any], score: dict[str, Any], rated: dict[str, Any]
) -> None:
    """Random scores rise and fall through levels, with ties, retractions, bounds and expiring penalties."""
    version = policies.allowed(({"levels": levels, "score": score, "actions": {"Rated": rated}},))[0]
    assert_agreement(events, policy(**version), NOW)


@pytest.mark.parametrize(
    ("amounts", "level"),
    [
        ((9,), (None, "bronze", 1)),
        ((10,), ("bronze", "silver", 10)),
        ((20,), ("silver", "gold", 10)),
        ((20, -5), ("silver", "gold", 15)),
        ((15,), ("bronze", "silver", 5)),
        ((20, -6), ("bronze", "silver", 6)),
        ((20, -6, 5), ("bronze", "silver", 1)),
        ((20, -11), (None, "bronze", 1)),
        ((50,), ("gold", None, None)),
        ((30, -1), ("silver", "gold", 1)),
    ],
)
def test_by_hand(amounts: tuple[int, ...], level: tuple[Any, Any, Any]) -> None:
    """A level is kept down to `falls_below`, and reached again only at its start."""
    assert level_of(moves(*amounts)) == level


def test_arrival_does_not_matter_and_a_retracted_rise_never_was() -> None:
    """Levels follow events in their order as they count now: the same rows in another order give the same level."""
    rises = moves(16, 4, -4)
    assert level_of(rises) == level_of(rises[::-1]) == ("silver", "gold", 14)
    withdrawn = Event("r", "ann", "Retracted", NOW - 1, {"target_event_id": "ann-1"})
    assert level_of([*rises, withdrawn]) == ("bronze", "silver", 8)


def test_as_of_an_earlier_moment() -> None:
    """Later events are not known then."""
    rises = moves(20, -5, -5)
    assert [level_of(rises, as_of=NOW - days * DAY)[0] for days in (2, 1, 0)] == ["silver", "silver", "bronze"]


def test_a_suspension_that_hides_the_score_hides_the_level() -> None:
    """Otherwise it would give the score away."""
    assert level_of([*moves(20), Event("s", "ann", "Suspended", NOW - 1)]) == (None, None, None)


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Derive a warehouse of two users over five days."""
    folder = tmp_path_factory.mktemp("levels")
    events = moves(10, 10, -5, -5) + moves(30, user_id="bob")
    derive(snapshot_of(folder, events), parse_policy(HEAD + LEVELS), AS_OF, folder / "warehouse.duckdb")
    return folder / "warehouse.duckdb"


def test_the_document_says_what_the_next_level_needs(warehouse: Path) -> None:
    """The highest level has no next one."""
    found = {row["user_id"]: json.loads(row["document"])["level"] for row in documents(warehouse).rows(named=True)}
    assert found["ann"] == {"name": "bronze", "next": "silver", "needed": 10}
    assert found["bob"] == {"name": "gold", "next": None, "needed": None}


def test_levels_by_day(warehouse: Path) -> None:
    """A row for each day on which a user's level changed, and the number of users on each level from it."""
    with Warehouse(warehouse) as opened:
        days = [at(NOW - number * DAY).date() for number in (4, 3, 1)]
        assert opened.sql("FROM user_levels WHERE user_id = 'ann'").rows() == [
            ("ann", days[0], "bronze", None, True),
            ("ann", days[1], "silver", "bronze", False),
            ("ann", days[2], "bronze", "silver", False),
        ]
        assert opened.trend("levels").rows() == [
            (days[0], "bronze", 1, 1, 0),
            (days[1], "bronze", 0, 0, 1),
            (days[1], "silver", 1, 1, 0),
            (days[2], "bronze", 1, 1, 0),
            (days[2], "gold", 1, 1, 0),
            (days[2], "silver", 0, 0, 1),
        ]


def explained(events: list[Event], rules: Policy) -> list[str | None]:
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        return explain(connection, rules, "ann", AS_OF)["level"].to_list()


def test_an_explanation_names_the_level_after_each_event() -> None:
    """Also where points decay: by the score that the events up to it have now."""
    assert explained(moves(10, 10, -5, -5), parse_policy(HEAD + LEVELS)) == ["bronze", "silver", "silver", "bronze"]
    halving = HEAD + "half_life_days = 1\n[levels]\nlow = 2\nhigh = 5\n"
    assert explained(moves(8, 8), parse_policy(halving)) == ["low", "high"]
    assert level_of(moves(8, 8), halving)[:2] == ("high", None)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("a = 2\nb = 1", "levels.b: begins at 1, and a before it at 2: sort them"),
        ("a = { at = 2 }\nb = { at = 3, falls_below = 1 }", "levels.b: is lost below 1, and a, a lower level, below 2"),
        ("a = { at = 2, falls_below = 3 }", "levels.a: falls_below 3 is above at 2: the level would be lost at once"),
        ("a = { falls_below = 3 }", 'levels.a: needs "at": the score that reaches the level'),
        ("a = { at = 1, fals_below = 0 }", "levels.a.fals_below: is not a key here: did you mean 'falls_below'?"),
        ("a = 'x'", "levels.a: has to be a number, not x"),
        ("a = 5\n[score]\nceiling = 4", "levels.a: begins above the ceiling of the score, 4: no score reaches it"),
        ('"a\'b" = 1', "levels.a'b: the name of a level has letters, digits, spaces and hyphens"),
        (
            "a = { at = 2, falls_below = 1 }\n[actions.B]\npoints = 1\nhalf_life_days = 3",
            "levels.a.falls_below: cannot be combined with half_life_days: a score that decays changes without events",
        ),
    ],
)
def test_mistakes(levels: str, message: str) -> None:
    """Each is named with its place and the remedy."""
    with pytest.raises(PolicyError) as error:
        parse_policy(f"{HEAD}[levels]\n{levels}\n", "p.toml")
    assert message in str(error.value)
