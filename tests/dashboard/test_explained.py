"""The table that explains a score: the columns of metadata by the policy, the filters, and the form of every value."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import marimo as mo
import polars as pl
import pytest

from pipelines.dashboard import explained, queries, sections
from pipelines.dashboard.table import number, table
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, snapshot_of
from tests.reputation.merges import merges_table, stored

POLICY = """
name = "market"
version = "1"
[retraction]
actions = ["Withdrawn"]
[completion.sales]
actions = ["Reviewed"]
by = ["Paid"]
key = "deal"
[once.buyers]
actions = ["Reviewed"]
per = "buyer"
keep = "first"
[actions.Reviewed]
rating = { from = "stars", minimum = 1, maximum = 5 }
points = { from = "stars", minimum = 1, maximum = 5 }
[actions.Paid]
points = 0.5
"""
_DEAL = {"deal": "<b>d1</b>", "buyer": "bea", "stars": "4", "shop_id": "s1", "score": "9", "metadata.score": "8"}
EVENTS = [
    Event("p1", "ann", "Paid", NOW - 9 * DAY, {"deal": "<b>d1</b>", "channel": "web", "zone": "z"}),
    Event("r1", "ann", "Reviewed", NOW - 5 * DAY, _DEAL),
    Event("r2", "ann", "Reviewed", NOW - 4 * DAY, {"stars": "5", "channel": "app"}),
    Event("w1", "ann", "Withdrawn", NOW - 3 * DAY, {"target_event_id": "p1"}),
    Event("p2", "bob", "Paid", NOW - 3 * DAY, {"shop_id": "of another user", "seat": "1"}),
    Event("p0", "old bob", "Paid", NOW - 4 * DAY, {"shop_id": "s0", "desk": "1"}),
    Event("p3", "cyd", "Paid", NOW - 3 * DAY),
]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("explained")
    merged = merges_table(stored([("old bob", "bob")]))
    lake = snapshot_of(folder / "lake", EVENTS, merged_users=merged)
    derive(lake, parse_policy(POLICY), AS_OF, folder / "warehouse.duckdb")
    with open_warehouse(folder) as opened:
        yield opened


def test_the_policy_says_which_metadata_come_first(warehouse: Warehouse) -> None:
    """Raters, then what completes; then ids, then the most frequent; none that another column shows, none of others."""
    assert explained.metadata_keys(warehouse, "ann") == [
        *("buyer", "deal", "shop_id", "channel", "metadata.score", "score", "zone"),
    ]
    assert explained.metadata_keys(warehouse, "bob") == ["shop_id", "desk", "seat"]
    assert explained.metadata_keys(warehouse, "cyd") == []


def test_each_event_has_its_own_metadata(warehouse: Warehouse) -> None:
    """By event, in the order of the rows, null where there is none; a key named as a column takes a prefix."""
    history = queries.event_history(warehouse, "ann")
    keys = ["buyer", "deal", "score", "metadata.score", "emission_no"]
    rows = explained.with_metadata(warehouse, "ann", history.reverse(), keys)
    assert rows["event_id"].to_list() == ["w1", "r2", "r1", "p1"]
    assert rows["buyer"].to_list() == [None, None, "bea", None]
    assert rows["deal"].to_list() == [None, None, "<b>d1</b>", "<b>d1</b>"]
    renamed = ("metadata.score", "metadata.metadata.score", "metadata.emission_no")
    assert rows.select(renamed).row(2) == ("9", "8", None)
    assert rows["score"].to_list() == history["score"].reverse().to_list()


def test_columns_without_a_value_are_left_out(warehouse: Warehouse) -> None:
    """Those that many users lack, by the whole history; an event without metadata has a row."""
    assert explained.unused(queries.event_history(warehouse, "ann")) == []
    history = queries.event_history(warehouse, "cyd")
    assert explained.unused(history) == ["rating", "rule", "related_event_id"]
    assert explained.with_metadata(warehouse, "cyd", history, []).width == 10
    page = sections.explanation(warehouse, "cyd", history, sections.filters(history)).text
    assert "related_event_id" not in page
    assert "1 contribution, newest first" in page


def test_a_rating_that_does_not_count_is_shown(warehouse: Warehouse) -> None:
    """An operator who is asked about a retracted or uncompleted rating sees its stars."""
    history = queries.event_history(warehouse, "ann")
    assert dict(history.select("event_id", "rating").rows()) == {"p1": None, "r1": 4, "r2": 5, "w1": None}
    assert warehouse.explain("ann")["rating"].is_null().all()


def test_only_what_the_policy_reads_is_shown_as_a_rating(tmp_path: Path) -> None:
    """An unreadable text is not a number on the page either."""
    events = [Event(f"r{stars}", "ann", "Reviewed", NOW - DAY, {"stars": stars}) for stars in ("4", "1e0", " 1")]
    derive(snapshot_of(tmp_path / "lake", events), parse_policy(POLICY), AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as opened:
        history = queries.event_history(opened, "ann")
    assert dict(history.select("event_id", "rating").rows()) == {"r4": 4, "r1e0": None, "r 1": None}


def test_days_and_reason_select_rows(warehouse: Warehouse) -> None:
    """Both days are included, in UTC; a reason selects its rows among them."""
    history = queries.event_history(warehouse, "ann")
    first, last = at(NOW - 9 * DAY).date(), at(NOW - 3 * DAY).date()
    assert explained.matching(history, (first, last), None).equals(history)
    assert explained.matching(history, (first, first), None)["event_id"].to_list() == ["p1"]
    reason = history.row(0, named=True)["reason"]
    assert explained.matching(history, (first, last), reason)["reason"].unique().to_list() == [reason]
    assert explained.matching(history, (date(2000, 1, 1), date(2000, 1, 1)), None).is_empty()


def test_the_section_names_what_it_leaves_out(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys beyond the columns are named, rows beyond the limit are counted, no match is a sentence; text is escaped."""
    history = queries.event_history(warehouse, "ann")
    page = sections.explanation(warehouse, "ann", history, sections.filters(history)).text
    assert "Metadata without a column: metadata.score, score, zone." in page
    assert "4 contributions, newest first" in page
    assert "&lt;b&gt;d1&lt;/b&gt;" in page
    assert "<b>d1</b>" not in page
    assert "None" not in page
    monkeypatch.setattr(sections, "_MAX_ROWS", 3)
    cut = sections.explanation(warehouse, "ann", history, sections.filters(history)).text
    assert "The newest 3 of 4 contributions" in cut
    assert cut.count("<tr>") == 1 + 3
    earlier = sections.filters(history.with_columns(pl.col("event_time").dt.offset_by("-1y")))
    none = sections.explanation(warehouse, "ann", history, earlier)
    assert "No event matches" in none.text


def test_values_have_a_form() -> None:
    """A column of numbers has the digits that it needs, at most two; null is an empty cell; nothing rounds to zero."""
    columns = {
        "whole": [5.0, None, 1_234.0],
        "half": [-0.5, 10.0, 0.004],
        "exact": [Decimal("1.50"), None, Decimal(-2)],
        "count": [1_000, None, 0],
        "when": [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None, None],
        "text": ["None", None, ""],
    }
    page = table(pl.DataFrame(columns)).text
    cells = [cell.partition("</bdi>")[0] for cell in page.split("<bdi>")[1 + len(columns) :]]
    assert cells == [
        *("5", "-0.5", "1.5", "1,000", "2026-01-02 03:04:05", "None"),
        *("", "10.0", "", "", "", ""),
        *("1,234", "0.004", "-2.0", "0", "", ""),
    ]
    assert page.count('<td class="number">') == 4 * 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0, "0"),
        (-0.0, "0"),
        (4.0, "4"),
        (-20.25, "-20.25"),
        (1_000_000.126, "1,000,000.13"),
        (-1e-7, "-1e-07"),
    ],
)
def test_a_number(value: float | None, shown: str) -> None:
    """Separators, at most two digits after the point, never a sign or a zero that is not there."""
    assert number(value) == shown


def test_a_former_user_id_is_the_person(warehouse: Warehouse) -> None:
    """The history of a merged account has the events and metadata of both, under either user_id."""
    assert warehouse.user_ids("old bob") == warehouse.user_ids("bob") == ["bob", "old bob"]
    history = queries.event_history(warehouse, "old bob")
    shown = explained.with_metadata(warehouse, "old bob", history, ["shop_id"])
    assert shown.select("event_id", "shop_id").rows() == [("p0", "s0"), ("p2", "of another user")]
    page = sections.user(warehouse, "old bob", history, mo.md("")).text
    assert "is the current user_id of" in page
    assert "no score yet" not in page
