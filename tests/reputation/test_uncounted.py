"""What no rule fits is said, with the reason: in a warehouse, and after the steps of any policy."""

from datetime import datetime
from pathlib import Path

import pytest

from pipelines.boundary.database import connect
from pipelines.reputation.derive import derive
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.scores import scores
from pipelines.reputation.uncounted import OF_STEPS, explain_uncounted, uncounted_in_warehouse
from pipelines.reputation.warehouse_file import attach
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table, snapshot_of

RULES = parse_policy(
    """
name = "p"
version = "1"
[actions.Rated]
rating.from = "stars"
rating.minimum = 1
rating.maximum = 5
rating.weight = { from = "helpful", minimum = 0, maximum = 1, digits = 2 }
[actions.Voted]
points = { from = "vote", map = { up = 1, down = -1 } }
[actions.Liked]
points = 1
"""
)
_STARS = "'stars' to be a number from 1 to 5 with no digits after the point"
_HELPFUL = "'helpful' to be a number from 0 to 1 with at most 2 digits after the point"
_NOTHING = "events that earn nothing:"
SENTENCES = [
    f"{_NOTHING} 2 of Rated: unreadable, since the policy needs {_STARS} and {_HELPFUL}",
    f"{_NOTHING} 1 of Voted: unreadable, since the policy needs 'vote' to be one of up, down",
    f"{_NOTHING} 2 of Like: no rule in the policy p: did you mean 'Liked'?",
    *(f"{_NOTHING} 1 of \\x1b{number}: no rule in the policy p" for number in range(4)),
    f"{_NOTHING} 2 of 2 other actions: no rule",
]


def _events() -> list[Event]:
    given = [("Rated", {"stars": "4.5", "helpful": "1"}), ("Rated", {"stars": "4"}), ("Voted", {}), ("Liked", {})]
    given += [
        ("Rated", {"stars": "4", "helpful": "1"}),
        ("Like", {}),
        ("Like", {}),
        *((f"\x1b{n}", {}) for n in range(6)),
    ]
    return [Event(f"e{n}", "ann", action, NOW - n - 1, metadata) for n, (action, metadata) in enumerate(given)]


def test_the_steps_of_any_policy() -> None:
    """The most frequent first, unreadable ones before those without a rule, and of many actions the rest together."""
    assert _sentences(RULES, AS_OF, *_events()) == SENTENCES


def _sentences(policy: Policy, as_of: datetime, *happened: Event) -> list[str]:
    with connect() as connection:
        connection.register("events", events_table([*happened]))
        scores(connection, policy, as_of)
        return explain_uncounted(connection, policy.at(as_of), OF_STEPS)


def test_a_later_version_that_reads_no_number() -> None:
    """Events of the earlier version stay unreadable; the sentence names the number that it needs."""
    policy = parse_policy(
        """
name = "p"
mode = "prospective"
[[versions]]
version = "1"
actions.Rated = { rating = { from = "stars", minimum = 1, maximum = 5 } }
[[versions]]
version = "2"
effective_from = 2024-02-20T00:00:00Z
actions.Rated.points = 1
"""
    )
    sentences = _sentences(policy, at(NOW), Event("e", "ann", "Rated", NOW - 20 * DAY, {"stars": "4.5"}))
    assert sentences == [f"{_NOTHING} 1 of Rated: unreadable, since the policy needs {_STARS}"]


_OTHER = "'grade' to be a number from 1 to 3 with no digits after the point"
_BOUNDS = "minimum = 0, maximum = 1"
_NEVER_UNREADABLE = f'rating = {{ fixed = 1, weight = {{ from = "w", {_BOUNDS}, missing = 1, unreadable = 0 }} }}'


@pytest.mark.parametrize(
    ("action", "metadata", "needs"),
    [
        ('points = { from = "p", minimum = 1, maximum = 3, missing = 0 }', {"p": "x"}, "'p', if there is one, to be a"),
        ('points = { from = "p", map = { up = 1 }, missing = 0 }', {"p": "x"}, "'p', if there is one, to be one of up"),
        ('rating = { from = "r", map = { up = 1 } }', {}, "'r' to be one of up"),
        ('rating = { from = "r", minimum = 1, maximum = 3, missing = 1 }', {"r": "4"}, "'r', if there is one, to be a"),
        (f'rating = {{ fixed = 1, weight = {{ from = "w", {_BOUNDS}, unreadable = 0 }} }}', {}, "'w'"),
        (
            f'rating = {{ fixed = 1, weight = {{ from = "w", {_BOUNDS} }} }}',
            {"w": "2"},
            "'w' to be a number from 0 to 1",
        ),
        (
            f'points.from = "p"\npoints.map = {{ up = 1 }}\n{_NEVER_UNREADABLE}',
            {"w": "x"},
            "'p' to be one of up",
        ),
        ('where = { v = "x" }\npoints = { from = "p", map = { up = 1 } }', {"v": "x"}, "'p' to be one of up"),
    ],
)
def test_only_what_can_be_unreadable_is_named(action: str, metadata: dict[str, str], needs: str) -> None:
    """Not a number that the policy replaces where it is missing or another text."""
    policy = parse_policy(f'name = "p"\nversion = "1"\nscopes.v.from = "v"\n[actions.A]\n{action}\n')
    (sentence,) = _sentences(policy, AS_OF, Event("e", "ann", "A", NOW - 1, metadata))
    found = sentence.removeprefix(f"{_NOTHING} 1 of A: unreadable, since the policy needs ")
    assert found.startswith(needs)
    assert found.count("'") == 2


def test_versions_that_read_other_keys() -> None:
    """An event of the earlier version does not lack the key of the later one: each is named with its version."""
    policy = parse_policy(
        """
name = "p"
mode = "prospective"
[[versions]]
version = "1"
actions.Rated = { rating = { from = "stars", minimum = 1, maximum = 5 } }
[[versions]]
version = "2"
effective_from = 2024-02-20T00:00:00Z
actions.Rated = { rating = { from = "grade", minimum = 1, maximum = 3 } }
"""
    )
    (sentence,) = _sentences(policy, at(NOW), Event("e", "ann", "Rated", NOW - 20 * DAY, {"stars": "4.5"}))
    assert sentence.endswith(f"unreadable, since the policy needs {_STARS} (version 1), or {_OTHER} (version 2)")


@pytest.mark.slow
def test_a_warehouse(tmp_path: Path) -> None:
    """By the policy that it was derived with; nothing to say of a lake whose events all have a rule."""
    derive(snapshot_of(tmp_path / "lake", _events()), RULES, AS_OF, tmp_path / "w.duckdb")
    with attach(tmp_path / "w.duckdb") as connection:
        assert uncounted_in_warehouse(connection) == SENTENCES
    derive(snapshot_of(tmp_path / "other", _events()[3:5], version=2), RULES, AS_OF, tmp_path / "w.duckdb")
    with attach(tmp_path / "w.duckdb") as connection:
        assert uncounted_in_warehouse(connection) == []
