"""What was shown of a user at two moments, and the causes of the difference (`explainable`)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.errors import KarmalakeError, UsageError
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.upkeep import vacuum
from pipelines.lake.withdrawal import BatchTopic, withdraw_batches
from pipelines.reputation import shown as shown_module
from pipelines.reputation.activation import activate, activated
from pipelines.reputation.derive import open_draft
from pipelines.reputation.lake_views import create_lake_views, open_lake_views
from pipelines.reputation.merged_users import merges_in
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.shown import ShownChange, explain_shown
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from pipelines.settings import Settings
from tests.clocks import Clock, replaced_clock
from tests.reputation import naive, policies
from tests.reputation.history import DAY, NOW, Event, at, snapshot_of, stored_schema, us
from tests.reputation.merges import Pair, merges
from tests.reputation.policies import EVENTS
from tests.reputation.strategies import ONE, histories
from tests.reputation.test_incremental import split
from tests.reputation.test_refresh_after_erasure import Place

RULES = """
name = "votes"
version = "1"
windows_days = [7]
{more}
[status]
suspend = ["Suspended"]
reinstate = ["Reinstated"]
[retraction]
actions = ["Retracted"]
[correction]
actions = ["Corrected"]
[caps.daily]
period = "day"
maximum = 25
actions = ["Up"]
[actions.Up]
points = 10
[actions.Rated]
points = {{ from = "stars", minimum = 1, maximum = 5 }}
rating = {{ from = "stars", minimum = 1, maximum = 5 }}
[actions.Down]
points = -50
penalties_expire_after_days = 5
"""
VOTES, DOUBLED = (
    parse_policy(RULES.format(more="").replace("points = 10", f"points = {points}").replace('"1"', f'"{points}"'))
    for points in (10, 20)
)
GATED = parse_policy(
    RULES.format(more="")
    + '[completion.done]\nactions = ["Up"]\nby = ["Done"]\nkey = "ride"\n'
    + '[once.one]\nactions = ["Rated"]\nkeep = "first"\n'
)
SINCE, UNTIL = NOW - 2 * DAY, NOW
EARLY, LATE = NOW - 3 * DAY, NOW - DAY
"""The times of the two commits of a scenario: one before SINCE, one after it."""


def ann(event_id: str, action: str, days: float, user: str = "ann", **metadata: str) -> Event:
    """Return an event of ann, or of another user, some days before NOW."""
    return Event(event_id, user, action, NOW - int(days * DAY), metadata)


def lake(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    early: Iterable[Event],
    late: Iterable[Event] = (),
    activations: Sequence[tuple[Policy, int]] = (),
) -> None:
    """Create the views of a lake with two commits, EARLY and LATE, and activations at given times."""
    batches = {"early": EARLY, "late": LATE}
    commits = [{"batch_id": name, "version": i, "committed": t} for i, (name, t) in enumerate(batches.items(), 1)]
    active = [{"name": p.name, "version": p.version, "policy": p.to_json(), "activated": t} for p, t in activations]
    events = [
        Event(event.event_id, event.user_id, event.action_type, event.t, event.metadata, batch)
        for batch, each in zip(batches, (early, late), strict=True)
        for event in each
    ]
    tables = {"commits": commits, "policies": active}
    stored = {name: pa.Table.from_pylist(rows, stored_schema(name)) for name, rows in tables.items()}
    create_lake_views(connection, snapshot_of(folder, events, version=2, **stored))


def shown(
    connection: duckdb.DuckDBPyConnection, rules: Policy = VOTES, view: str = "all_time", user: str = "ann"
) -> ShownChange:
    return explain_shown(connection, user, at(SINCE), at(UNTIL), lambda: rules, Settings(), view)


def causes(change: ShownChange) -> list[tuple[str, str | None, str | None, int]]:
    """Return cause, caused_by, event_id and change of what changed points."""
    rows = change.causes.filter(pl.col("change") != 0)
    return rows.select("cause", "caused_by", "event_id", pl.col("change").cast(pl.Int64)).rows()


_RATED = '{ from = "stars", minimum = 1, maximum = 5'
_WEIGHT = ', weight = { from = "helpful", minimum = 0, maximum = 1, digits = 2, missing = 1 } }'
UP, RATED = ann("up", "Up", 4), ann("rated", "Rated", 4, stars="5")
_SCENARIOS: dict[str, tuple[list[Event], list[Event], list[tuple[str, str | None, str | None, int]]]] = {
    "a new event": ([UP], [ann("new", "Up", 1.5)], [("new event", None, "new", 10)]),
    "a late event": ([UP], [ann("late", "Down", 2.5)], [("late event", None, "late", -50)]),
    "a retraction": ([UP], [ann("r", "Retracted", 1, target_event_id="up")], [("retraction", "r", "up", -10)]),
    "a correction": (
        [RATED],
        [ann("c", "Corrected", 1, target_event_id="rated", stars="2")],
        [("correction", "c", "rated", -3)],
    ),
    "a late suspension": (
        [ann("before", "Up", 9), UP],
        [ann("s", "Suspended", 5)],
        [("suspension", "s", "up", -10)],
    ),
    "a late reinstatement": (
        [ann("s", "Suspended", 5), UP],
        [ann("back", "Reinstated", 4.5)],
        [("reinstatement", "back", "up", 10)],
    ),
    "a penalty that expired": ([ann("down", "Down", 6)], [], [("penalty expired", None, "down", 50)]),
    "a cap": (
        [ann("1", "Up", 4), ann("2", "Up", 3.9), ann("3", "Up", 3.8)],
        [ann("r", "Retracted", 1, target_event_id="1")],
        [("retraction", "r", "1", -10), ("cap", "daily", "3", 5)],
    ),
    "nothing that changes points": ([UP], [ann("w", "Waved", 1)], []),
}


@pytest.mark.slow
def test_points_from_time_have_causes(tmp_path: Path) -> None:
    """Time adds them, an event shares a cap with them, and a late first event moves them."""
    rules = parse_policy(
        RULES.format(more='time.daily = { points = 20, every = "day", times = 2 }').replace(', actions = ["Up"]', "")
    )
    with duckdb.connect() as connection:
        lake(connection, tmp_path, [ann("w", "Waved", 3.5)], [])
        assert causes(shown(connection, rules)) == [("points from time", None, None, 20)]
        lake(connection, tmp_path / "late", [ann("w", "Waved", 3.5)], [ann("first", "Waved", 4.5)])
        found = causes(shown(connection, rules))
    assert sum(change for *_, change in found) == 20
    assert {cause for cause, *_ in found} == {"points from time", "first event"}


@pytest.mark.slow
@pytest.mark.parametrize("name", _SCENARIOS)
def test_each_cause_is_named(tmp_path: Path, name: str) -> None:
    """With its event, what caused it, and its points, which add up to the difference."""
    early, late, expected = _SCENARIOS[name]
    with duckdb.connect() as connection:
        lake(connection, tmp_path, early, late)
        change = shown(connection)
    assert causes(change) == expected
    assert_adds_up(change)
    assert (change.before.lake_version, change.after.lake_version) == (1, 2)


@pytest.mark.slow
def test_gates_are_causes(tmp_path: Path) -> None:
    """Another user's event completes ann's, and that user's retraction undoes it; of two ratings the earlier counts."""
    early = [ann("up", "Up", 4, ride="r1"), ann("x", "Up", 4, ride="r2"), ann("d2", "Done", 4, "bob", ride="r2")]
    late = [ann("d1", "Done", 4, "cid", ride="r1"), ann("undo", "Retracted", 1, "bob", target_event_id="d2")]
    ratings = [ann("second", "Rated", 3.5, stars="5")], [ann("first", "Rated", 3.6, stars="1")]
    with duckdb.connect() as connection:
        lake(connection, tmp_path, [*early, *ratings[0]], [*late, *ratings[1]])
        change = shown(connection, GATED)
        loaded = connection.sql("SELECT event_id FROM explained_event WHERE user_id <> 'ann' ORDER BY ALL").fetchall()
    assert causes(change) == [
        ("completion", "done", "up", 10),
        ("completion", "done", "x", -10),
        ("late event", None, "first", 1),
        ("once", "one", "second", -5),
    ]
    assert loaded == [("d1",), ("d2",), ("undo",)]


@pytest.mark.slow
def test_a_window_moves(tmp_path: Path) -> None:
    """An event that left the window is a cause there only; measures are shown as they were."""
    early = [ann("old", "Rated", 8, stars="2"), ann("rated", "Rated", 4, stars="5")]
    with duckdb.connect() as connection:
        lake(connection, tmp_path, early)
        window, whole = shown(connection, view="last_7_days"), shown(connection)
    assert causes(window) == [("left the window", None, "old", -2)]
    assert [shown.numbers["rating_average"] for shown in (window.before, window.after)] == [3.5, 5]
    assert window.causes.select("rating_before", "rating").rows() == [(2, None)]
    assert causes(whole) == []


@pytest.mark.slow
def test_what_changes_measures_alone_is_a_cause(tmp_path: Path) -> None:
    """A corrected weight of a rating, trust in its rater, and the prior of its day; weights of another policy, too.

    zed is the seed and rates yan alone: of what is not returned to zed, yan has 0.85 of zed's of the round before, so
    0.369 of all trust after ten rounds, and weighs twice that, since two users are trusted.
    """
    weighed = parse_policy(
        RULES.format(more='raters = { weight = "trust", seeds = "zed", minimum = 0.1 }')
        .replace('"1"', '"2"')
        .replace('rating = { from = "stars", minimum = 1, maximum = 5 }', f"rating = {_RATED}{_WEIGHT}")
        + '[measures]\nlearned = { formula = "bayesian", prior = "global", prior_mean = 3, prior_weight = 1 }\n'
    )
    early = [ann("a", "Rated", 4, stars="5", helpful="0.5"), ann("b", "Rated", 3, stars="4", rater_id="yan")]
    late = [
        ann("c", "Corrected", 1, target_event_id="a", helpful="1"),
        ann("other", "Rated", 5, "yan", stars="5", rater_id="zed"),
    ]
    with duckdb.connect() as connection:
        lake(connection, tmp_path, early, late)
        arrived = shown(connection, weighed)
        lake(connection, tmp_path / "policy", early, [], [(weighed, NOW - DAY)])
        activated = shown(connection)
    columns = ["cause", "caused_by", "event_id", "weight_before", "weight", "prior_before", "prior"]
    assert arrived.causes.filter(pl.col("action_type") == "Rated").select(columns).rows() == [
        ("correction", "c", "a", 0.05, 0.1, None, 5),
        ("trust in the rater", None, "b", 0.1, 0.738007, 5, 5),
    ]
    assert set(arrived.causes["change"]) == {0}
    assert activated.causes.select(columns).rows() == [
        ("policy", "votes@2", "a", None, 0.05, None, None),
        ("policy", "votes@2", "b", None, 0.1, None, 5),
    ]


@pytest.mark.slow
def test_a_policy_is_a_cause_after_the_events(tmp_path: Path) -> None:
    """What arrived is valued by the old policy, then the new one changes all of it; the first is of the settings."""
    activations = [(DOUBLED, NOW - DAY)]
    with duckdb.connect() as connection:
        lake(connection, tmp_path, [UP], [ann("new", "Up", 1.5)], activations)
        change = shown(connection)
    assert causes(change) == [
        ("policy", "votes@20", "up", 10),
        ("new event", None, "new", 10),
        ("policy", "votes@20", "new", 10),
    ]
    assert (change.before.policy, change.after.policy) == ("votes@10", "votes@20")
    assert change.summary().rows() == [("policy", 2, Decimal(20)), ("new event", 1, Decimal(10))]


@pytest.mark.slow
def test_the_causes_of_one_event_are_in_the_order_charged(tmp_path: Path) -> None:
    """An event that counts again, and counts double from then on: first it is reinstated, by the old policy."""
    early, late, _ = _SCENARIOS["a late reinstatement"]
    with duckdb.connect() as connection:
        lake(connection, tmp_path, early, late, [(DOUBLED, NOW - DAY)])
        assert causes(shown(connection)) == [
            ("reinstatement", "back", "up", 10),
            ("policy", "votes@20", "up", 10),
        ]


@pytest.mark.slow
def test_a_version_comes_into_force(tmp_path: Path) -> None:
    """A version of the same policy is a cause from its effective_from on."""
    versions = [
        {"version": "1", "actions": {"Up": {"points": 1}}},
        {"version": "2", "effective_from": at(NOW - DAY), "actions": {"Up": {"points": 7}}},
    ]
    with duckdb.connect() as connection:
        lake(connection, tmp_path, [UP])
        change = shown(connection, Policy.model_validate({"name": "two", "versions": versions}))
    assert causes(change) == [("policy", "two@2", "up", 6)]


@pytest.mark.slow
def test_decay_is_a_cause_and_rounding_one_row(tmp_path: Path) -> None:
    """Each event loses half of what it was worth; what an inserted event shifts by rounding is summed up."""
    rules = parse_policy('name = "halving"\nversion = "1"\n[actions.Up]\npoints = 8\nhalf_life_days = 2\n')
    with duckdb.connect() as connection:
        lake(connection, tmp_path, [ann(str(n), "Up", 6 + n / 10) for n in range(5)], [ann("late", "Up", 6.01)])
        change = shown(connection, rules)
    found = change.summary()
    assert set(found["cause"]) - {"rounding"} == {"decay", "late event"}
    assert found.filter(pl.col("cause") == "decay")["changes"].item() == 5
    assert change.causes.filter(pl.col("cause") == "rounding").height <= 1
    assert_adds_up(change)


@pytest.mark.parametrize(
    ("span", "view", "error", "message"),
    [
        ((UNTIL, SINCE), "all_time", UsageError, "is not before .*: swap them"),
        (
            (EARLY, UNTIL),
            "all_time",
            UsageError,
            "nothing was shown at .*: the first commit is of 2024-02-27 00:00:00Z",
        ),
        ((SINCE, UNTIL), "last_8_days", UsageError, "has no view 'last_8_days': there are all_time, last_7_days"),
    ],
)
def test_mistakes_are_explained(
    tmp_path: Path, span: tuple[int, int], view: str, error: type[Exception], message: str
) -> None:
    """The message says what is wrong and what there is."""
    with duckdb.connect() as connection:
        lake(connection, tmp_path, [UP])
        with pytest.raises(error, match=message):
            explain_shown(connection, "ann", at(span[0]), at(span[1]), lambda: VOTES, Settings(), view)


@pytest.mark.slow
def test_a_user_of_whom_nothing_was_shown(tmp_path: Path) -> None:
    """Unknown at both moments is an error; known at the second only, the score counts from nothing."""
    with duckdb.connect() as connection:
        lake(connection, tmp_path, [UP], [ann("b", "Up", 4, "bob")])
        with pytest.raises(KarmalakeError, match=r"nothing was shown of user 'nobody' at .* check the spelling"):
            shown(connection, user="nobody")
        change = shown(connection, user="bob")
    assert (change.before.score, change.before.status, change.after.score) == (None, None, 10)
    assert causes(change) == [("late event", None, "b", 10)]


@pytest.mark.slow
def test_a_withdrawn_load_is_a_cause_until_a_vacuum(tmp_path: Path) -> None:
    """Then what was lost is counted; a load that came back changed nothing, and erased users have no past."""
    here = Served(Place(tmp_path), Clock(), VOTES)
    here.place.commit([UP, ann("b", "Up", 4, "bob")])
    here.place.commit([ann("wrong", "Up", 1)])
    since = datetime.now(UTC)
    here.withdraw(2)
    change = here.explain("ann", us(since), us(datetime.now(UTC)), "all_time")
    assert causes(change) == [("withdrawn", "wrong file", "wrong", -10)]
    assert (change.before.score, change.after.score, change.unread) == (20, 10, 0)
    here.place.commit([ann("wrong", "Up", 1)])
    assert causes(here.explain("ann", us(since), us(datetime.now(UTC)), "all_time")) == []
    here.withdraw(1)
    here.place.erase("bob")
    with pytest.raises(KarmalakeError, match="nothing was shown of user 'bob'"):
        here.explain("bob", us(since), us(datetime.now(UTC)), "all_time")
    vacuum(here.place.lake, 0)
    change = here.explain("ann", us(since), us(datetime.now(UTC)), "all_time")
    assert (change.unread, change.after.score) == (3, 10)


@pytest.mark.slow
def test_a_warehouse_explains_what_was_shown(tmp_path: Path) -> None:
    """Moments are texts, too; the end is its as_of, and a later one is refused."""
    here = Served(Place(tmp_path), Clock(), VOTES)
    here.place.commit([UP])
    since = datetime.now(UTC).isoformat()
    here.place.commit([ann("late", "Up", 5)])
    here.publish(us(datetime.now(UTC)))
    with open_warehouse(tmp_path) as warehouse:
        change = warehouse.explain_shown("ann", since)
        assert causes(change) == [("late event", None, "late", 10)]
        assert warehouse.explain_shown("ann", since, view="last_7_days").after.score == 0
        assert change.after.score == warehouse.reputation("ann")["all_time_score"].item()
        with pytest.raises(UsageError, match=r"is after .*, the as_of of this warehouse: refresh"):
            warehouse.explain_shown("ann", since, "2999-01-01")


@pytest.mark.slow
def test_an_account_that_was_merged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cause of its own, for both user_ids; known-at answers and scores of before stay as they were shown."""
    here = Served(Place(tmp_path), replaced_clock(monkeypatch), VOTES)
    here.set(NOW)
    here.place.commit([ann("1", "Up", 4), ann("b", "Up", 3, "bob")])
    here.place.merge(("ann", "bob"), NOW + DAY)
    here.set(NOW + 2 * DAY)
    here.place.commit([ann("b2", "Up", -1, "bob"), ann("new", "Up", -1)])
    here.publish(NOW + 3 * DAY)
    merged, new = ("account merged", "ann into bob"), ("new event", None)
    with open_warehouse(tmp_path) as warehouse:
        monkeypatch.setattr(warehouse, "_unrecorded_policy", lambda: VOTES)
        of_bob, of_ann = (warehouse.explain_shown(user, "2024-03-01T12:00:00Z") for user in ("bob", "ann"))
        assert causes(of_bob) == [(*merged, "1", 10), (*new, "b2", 10), (*merged, "new", 10)]
        assert causes(of_ann) == [(*merged, "b", 10), (*merged, "b2", 10), (*new, "new", 10)]
        assert (of_bob.before.score, of_ann.before.score, of_bob.after, of_ann.after.score) == (
            10,
            10,
            of_ann.after,
            40,
        )
        assert warehouse.shown_scores("bob")["score"].to_list()[-1] == 40
        then = warehouse.as_of("2024-03-02", known_at="2024-03-02").scores()
        assert dict(then.select("user_id", "all_time_score").rows()) == {"ann": 10, "bob": 10}
        assert warehouse.as_of("2024-03-02", known_at="2024-03-02").explain("ann")["event_id"].to_list() == ["1"]


@pytest.mark.slow
def test_the_scores_that_were_shown_over_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After each commit, activation and withdrawal, and at midnight; of many moments one for each day remains."""
    here = Served(Place(tmp_path), replaced_clock(monkeypatch), VOTES)
    here.set(NOW + DAY // 2)
    here.place.commit([ann("1", "Up", 4), ann("2", "Up", 3), ann("b", "Up", 3, "bob")])
    here.set(NOW + DAY // 2 + 1_000_000)
    here.place.commit([ann("late", "Down", 4.2)])
    here.set(NOW + DAY + 1_000_000)
    activate(here.place.lake, DOUBLED)
    here.set(NOW + DAY + 2_000_000)
    here.withdraw(1)
    here.publish(NOW + 2 * DAY)
    with open_warehouse(tmp_path) as warehouse:
        monkeypatch.setattr(warehouse, "_unrecorded_policy", lambda: VOTES)
        rows = warehouse.shown_scores("ann")
        assert rows["score"].to_list() == [20, -30, 20, 40, 0, 0]
        assert rows["moment"].dt.date().dt.day().to_list() == [1, 1, 2, 2, 2, 3]
        assert rows["score"].to_list()[-1] == warehouse.reputation("ann")["all_time_score"].item()
        assert warehouse.shown_scores("ann", "last_7_days")["score"].to_list() == [20, -30, 20, 40, 0, 0]
        monkeypatch.setattr(shown_module, "_MAX_MOMENTS", 2)
        assert warehouse.shown_scores("ann")["score"].to_list() == [-30, 0, 0]


def assert_adds_up(change: ShownChange) -> None:
    """Assert that the changes add up to the difference of the scores, exactly where these are exact numbers."""
    before, after = (Decimal(str(state.score or 0)) for state in (change.before, change.after))
    tolerance = Decimal("1e-9") if isinstance(change.after.score or change.before.score, float) else 0
    assert abs(sum(change.causes["change"], Decimal(0)) - (after - before)) <= tolerance


@dataclass
class Served:
    """A lake whose clock is set, and the rows that were published at each moment."""

    place: Place
    clock: Clock
    first: Policy

    def set(self, t: int) -> None:
        self.clock.behind = datetime.now(UTC) - at(t)

    def name_at(self, user: str, t: int) -> str:
        """Return the user_id under which a user was shown at a moment."""
        with open_lake_views(take_snapshot(self.place.lake)) as connection:
            pairs = [(each.user_id, each.merged_into) for each in merges_in(connection, at(t))]
        (event,) = naive.resolved([ann("any", "Up", 1, user)], pairs, ())
        return event.user_id

    def withdraw(self, number: int) -> None:
        chosen = [BatchTopic(f"batch-{number}", "topic-id", "topic")]
        withdraw_batches(self.place.lake, lambda: chosen, "wrong file")

    def publish(self, t: int) -> dict[str, dict[str, Any]]:
        """Refresh and publish as of a moment by the policy in force; return the published row of each user."""
        rules = activated(self.place.lake) or self.first
        with open_draft(self.place.warehouse) as draft:
            self.place.refresh(draft, rules, t)
            draft.publish()
        with Warehouse(self.place.warehouse) as warehouse:
            return {row["user_id"]: row for row in warehouse.reputation().to_dicts()}

    def explain(self, user: str, since: int, until: int, view: str) -> ShownChange:
        here = Settings(data_dir=self.place.folder)
        with open_lake_views(take_snapshot(self.place.lake)) as connection:
            return explain_shown(connection, user, at(since), at(until), lambda: self.first, here, view)


def numbers_of(row: dict[str, Any] | None, view: str) -> dict[str, Any]:
    """Return the columns of a view of a published row, without the prefix."""
    return {name.removeprefix(f"{view}_"): value for name, value in (row or {}).items() if name.startswith(f"{view}_")}


@dataclass(frozen=True)
class Turn:
    """What is committed, withdrawn (a number of a commit), put in force and merged, an hour before a refresh."""

    events: list[Event]
    withdrawn: int | None
    policy: Policy | None
    moment: int
    merged: list[Pair]


@st.composite
def stories(draw: st.DrawFn) -> list[Turn]:
    """Return four commits of any events, so many of them late, with withdrawals, activations and merges among them."""
    commits = draw(histories(*EVENTS, max_size=12).flatmap(split))
    ends = sorted(draw(st.sets(st.integers(-2, 40), min_size=4, max_size=4)))
    rules = policies.whole_policies() | policies.versioned_policies()
    turns: list[Turn] = []
    for number, (events, days) in enumerate(zip(commits, ends, strict=True), 1):
        old = draw(st.none() | st.integers(1, number - 1)) if number > 1 else None
        new = draw(st.none() | rules)
        renamed = new and new.model_copy(update={"name": f"random-{number}"})
        turns.append(Turn(events, old, renamed, NOW + days * DAY, draw(merges(max_size=1))))
    return turns


@pytest.mark.slow
@ONE
@given(stories(), policies.whole_policies(), st.data())
def test_the_causes_add_up_to_what_was_published(story: list[Turn], first: Policy, data: st.DataObject) -> None:
    """Over late events, retractions, windows, withdrawals, merges and other policies: both moments are as published."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        here = Served(Place(Path(folder)), replaced_clock(patched), first)
        published: list[tuple[int, dict[str, dict[str, Any]]]] = []
        for number, turn in enumerate(story, 1):
            here.set(turn.moment - DAY // 24)
            here.place.commits = number - 1
            here.place.commit(turn.events)
            if turn.policy:
                activate(here.place.lake, turn.policy)
            if turn.withdrawn and story[turn.withdrawn - 1].events:
                here.withdraw(turn.withdrawn)
            for pair in turn.merged:
                here.place.merge(pair, turn.moment - DAY // 24)
            if here.place.lake.table("events").version():
                published.append((turn.moment, here.publish(turn.moment)))
        assume(len(published) > 1)
        (since, old), (until, new) = sorted(data.draw(st.permutations(published))[:2], key=lambda each: each[0])
        users = sorted(old.keys() | new.keys())
        assume(users)
        user, view = data.draw(st.sampled_from(users)), data.draw(st.sampled_from(["all_time", "last_30_days"]))
        change = here.explain(user, since, until, view)
        for shown, rows, moment in ((change.before, old, since), (change.after, new, until)):
            assert shown.numbers == numbers_of(rows.get(here.name_at(user, moment)), view)
        assert change.unread == 0
        assert_adds_up(change)
