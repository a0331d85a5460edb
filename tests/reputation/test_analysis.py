"""Frames that analysts ask for: events with their metadata, changes of all users, timelines, samples."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from pipelines.errors import KarmalakeError, UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.event_metadata import with_fields
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, snapshot_of

POLICY = """
name = "started"
version = "1"
score = { start = 50, ceiling = 54 }
[status]
suspend = ["Suspended"]
reinstate = ["Reinstated"]
rule = "hide"
shown = 1
[actions.Done]
points = 3
"""
OLD, NEW = NOW - 9 * DAY, NOW - 2 * DAY
SINCE = at(NOW - 5 * DAY)
EVENTS = [
    Event("a1", "ann", "Done", OLD, {"price": "1", "user_id": "x"}),
    Event("a2", "ann", "Done", NEW),
    Event("b1", "bob", "Done", OLD, {"note": "a,b\n"}),
    Event("c1", "cyd", "Done", NEW),
    Event("d1", "dan", "Done", OLD),
    Event("d2", "dan", "Suspended", NEW),
]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("analysis")
    derive(snapshot_of(folder / "lake", EVENTS), parse_policy(POLICY), AS_OF, folder / "warehouse.duckdb")
    with open_warehouse(folder) as opened:
        yield opened


def test_metadata_unnests_and_writes(warehouse: Warehouse) -> None:
    """A field for each key of the rows, null where an event lacks it; a key named like a column takes a prefix."""
    events = warehouse.events()
    assert events.schema["metadata"] == pl.Struct({"note": pl.String, "price": pl.String, "user_id": pl.String})
    flat = events.unnest("metadata", separator=".")
    again = pl.read_csv(io.StringIO(flat.write_csv()), infer_schema=False)
    assert again.columns == flat.columns
    assert dict(zip(again["event_id"], again["metadata.note"], strict=True))["b1"] == "a,b\n"
    assert flat.filter(event_id="a1").select("user_id", "metadata.user_id").row(0) == ("ann", "x")
    assert warehouse.events("cyd").unnest("metadata").width == events.width - 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda warehouse, user: warehouse.events(user),
        lambda warehouse, user: warehouse.changes(user),
        lambda warehouse, user: warehouse.timeline(user),
        lambda warehouse, user: warehouse.timeline(["ann", user]),
        lambda warehouse, user: warehouse.reputation(user),
        lambda warehouse, user: warehouse.explain(user),
        lambda warehouse, user: warehouse.explain(user, view="last_7_days"),
        lambda warehouse, user: warehouse.explain_change(user, SINCE),
        lambda warehouse, user: warehouse.shown_scores(user),
        lambda warehouse, user: warehouse.as_of(SINCE).explain(user),
    ],
)
def test_an_unknown_user_is_a_mistake(warehouse: Warehouse, ask: Callable[[Warehouse, str], pl.DataFrame]) -> None:
    """The sentence names the most similar user, and none if none is; an empty answer about a known user is one."""
    for wrong in ("Ann", "an", " ann", "annn"):
        with pytest.raises(
            KarmalakeError, match=f"^no events of user '{wrong}': check the spelling; did you mean 'ann'\\?$"
        ):
            ask(warehouse, wrong)
    with pytest.raises(KarmalakeError, match=r"^no events of user 'nobody': check the spelling$"):
        ask(warehouse, "nobody")
    ask(warehouse, "cyd")


def test_a_known_user_may_have_no_rows(warehouse: Warehouse) -> None:
    """Before the first event, and among events of another action."""
    assert warehouse.as_of(SINCE).explain("cyd")["event_id"].drop_nulls().is_empty()
    assert warehouse.events("cyd", "Suspended").is_empty()
    assert warehouse.changes("cyd").is_empty()


def test_too_many_keys_are_refused() -> None:
    """A producer can put ids into keys; the message says how to get single ones."""
    maps = [{f"key-{number}": "1"} for number in range(501)]
    events = pl.DataFrame({"metadata": maps}, {"metadata": pl.Map(pl.String, pl.String)})
    with pytest.raises(UsageError, match=r"501 events have 501 keys of metadata.*metadata\['rating'\]"):
        with_fields(events)
    assert len(with_fields(events.head(500)).schema["metadata"].fields) == 500  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_change_agrees_with_each_explanation(warehouse: Warehouse) -> None:
    """For each user it is the sum of what changed; new users start from the policy's start."""
    changed = warehouse.change(SINCE)
    assert changed.rows() == [
        ("dan", 53, 1, -52, 1, 4),
        ("cyd", None, 53, 3, None, 2),
        ("ann", 53, 54, 1, 1, 1),
        ("bob", 53, 53, 0, 1, 2),
    ]
    for user, change in changed.select("user_id", "change").rows():
        assert warehouse.explain_change(user, SINCE)["change"].sum() == change
    assert warehouse.change(AS_OF.replace(year=2023), SINCE)["score_after"].to_list() == [53, 53, 53]
    with pytest.raises(UsageError, match=r"since 2024-03-01 00:00 is not before until 2024-02-25 00:00"):
        warehouse.change(AS_OF, SINCE)


def test_a_timeline_is_by_user_and_event(warehouse: Warehouse) -> None:
    """Rows of events only, with the running score; an id or several, each once."""
    assert warehouse.timeline(["ann", "cyd", "ann"]).select("user_id", "event_id", "earned", "score").rows() == [
        ("ann", "a1", 3, 53),
        ("ann", "a2", 3, 56),
        ("cyd", "c1", 3, 53),
    ]
    assert warehouse.timeline("bob")["event_id"].to_list() == ["b1"]
    with pytest.raises(UsageError, match="at least one user_id"):
        warehouse.timeline([])


def test_a_sample_is_the_same_for_a_seed(warehouse: Warehouse, tmp_path: Path) -> None:
    """Another seed takes others; a user who leaves no place to a new one stays, and it joins by SQL."""
    few = warehouse.sample(2, seed=1)
    assert few.equals(warehouse.sample(2, seed=1))
    assert few.columns == warehouse.reputation().columns
    assert {frozenset(warehouse.sample(2, seed=seed)["user_id"]) for seed in range(20)} > {frozenset(few["user_id"])}
    joined = warehouse.sql("FROM events SEMI JOIN few USING (user_id)", tables={"few": few})
    assert set(joined["user_id"]) == set(few["user_id"])
    events = [*EVENTS, *(Event(f"n{number}", f"new-{number}", "Done", NEW) for number in range(20))]
    derive(snapshot_of(tmp_path / "lake", events), parse_policy(POLICY), AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as later:
        kept = [user for user in later.sample(24, seed=1)["user_id"] if not user.startswith("new-")]
    assert kept[:2] == few["user_id"].to_list()
