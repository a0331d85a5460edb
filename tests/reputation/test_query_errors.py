"""A reader's mistake is a sentence: what is wrong, the place in the statement, what to do."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """Return the warehouse of one event, whose user_id contains a control character."""
    folder = tmp_path_factory.mktemp("mistakes")
    events = [Event("a", "a\x1bnn", "DriverRated", NOW - DAY, {"rating": "5"})]
    derive(snapshot_of(folder / "lake", events), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    with open_warehouse(folder) as opened:
        yield opened


@pytest.mark.parametrize(
    ("query", "line", "marked"),
    [
        ("SELECT usr_id FROM reputation", 1, "usr_id"),
        ("SELECT user_id,\n  nofun(user_id)\nFROM reputation", 2, "nofun(user_id)"),
        ("SELECT user_id\nFRM reputation", 2, "reputation"),
        ("SELECT *\nFROM nothing", 2, "nothing"),
        ("SELECT sum(user_id) FROM reputation", 1, "sum(user_id)"),
        ("SELECT count(*), user_id FROM reputation WHERE all_time_score > ?", 1, "user_id"),
        ("SELECT user_id::INTEGER FROM reputation", 1, "::INTEGER"),
        ("EXPLAIN ANALYZE SELECT usr_id FROM reputation", 1, "usr_id"),
    ],
)
def test_the_place_is_marked(warehouse: Warehouse, query: str, line: int, marked: str) -> None:
    """The message quotes the line of the statement, and the mark is under the text that is wrong."""
    with pytest.raises(UsageError) as refused:
        warehouse.sql(query, [0] if "?" in query else None)
    lines = str(refused.value).splitlines()
    excerpt, mark = next(pair for pair in pairwise(lines) if pair[0].startswith("LINE "))
    assert excerpt == f"LINE {line}: {query.splitlines()[line - 1]}"
    assert excerpt[mark.index("^") : len(mark)] == marked
    assert str(refused.value).startswith("the query failed: ")
    assert len(str(refused.value).splitlines()) < 12


@pytest.mark.parametrize(
    ("query", "params", "message"),
    [
        ("", None, "the query is empty"),
        ("SELECT ?", None, r"has 1 \? and params 0 values: give a list"),
        ("SELECT ?, ?", ["a"], r"has 2 \? and params 1 value: give a list"),
        ("SELECT ?", ["a", "b"], r"has 1 \? and params 2 values: give a list"),
        ("SELECT ?", {"who": "a"}, r"has 1 \? and params 1 value: give a list"),
        ("SELECT ?", "ann", "params='ann' is neither a list, for each"),
        ("SELECT ?", 5, "params=5 is neither a list"),
        ("SELECT $who", {"whom": 1}, r"\$who has no value: pass params={'who': ...}"),
        ("SELECT $who", {"who": 1, "when": 2}, r"no parameter 'when', .*: it has \$who"),
        ("SELECT 1", [2], r"has 0 \? and params 1 value: give a list"),
        ("SELECT 1", {"who": 2}, "no parameter 'who', .*: it has none"),
        ("SELECT $who, ?", [2], "Mixing named and positional"),
        ("SELECT ?", [object()], "Unable to transform python value of type '<class 'object'>'"),
    ],
)
def test_parameters_that_do_not_fit(warehouse: Warehouse, query: str, params: Any, message: str) -> None:
    """The message names the parameter, and the form that is expected."""
    with pytest.raises(UsageError, match=message):
        warehouse.sql(query, params)


@pytest.mark.parametrize("value", [-1, 2.5, True, "3", None])
def test_a_number_of_rows_is_whole(warehouse: Warehouse, value: Any) -> None:
    """A fraction is not rounded, a negative number does not count from the end, and the message names the argument."""
    with pytest.raises(UsageError, match=f"^users={value!r} is not a whole number from 0 to 1,000,000,000$"):
        warehouse.sample(value)
    with pytest.raises(UsageError, match=f"^top={value!r} is not a whole number"):
        warehouse.plot.change("2026-01-01", top=value)
    assert warehouse.sample(0).is_empty()


def test_values_in_a_message_control_no_terminal(warehouse: Warehouse) -> None:
    """DuckDB quotes values of users: control characters are escaped."""
    with pytest.raises(UsageError, match=r"'a\\x1bnn'"):
        warehouse.sql("SELECT user_id::INTEGER FROM reputation")


def test_a_file_is_refused_with_the_ways_to_read_it(warehouse: Warehouse) -> None:
    """A data frame, or `allow_files`; a table that is merely unknown may be a frame, not a file."""
    with pytest.raises(UsageError, match=r"tables=\{...\}, or open the warehouse with\sallow_files=True"):
        warehouse.sql("FROM 'segments.csv'")
    with pytest.raises(
        UsageError, match=r"a data frame of yours is passed in Python by tables=\{'segments'"
    ) as refused:
        warehouse.sql("FROM segments")
    assert "allow_files" not in str(refused.value)


def test_a_difference_of_moments_is_explained(warehouse: Warehouse) -> None:
    """There is no type in polars for DuckDB's INTERVAL: the message names the column and two ways."""
    query = "SELECT max(event_time) - min(event_time) AS age FROM events"
    with pytest.raises(UsageError, match=r"the column 'age' is an INTERVAL, .* by epoch\(...\), or take .arrow\(\)"):
        warehouse.sql(query)
    assert warehouse.arrow(query).num_rows == 1
    assert warehouse.sql("SELECT epoch(max(event_time) - min(event_time)) AS age FROM events").item() == 0
