"""Points that decay: sums as of an epoch, scaled once a step, exact to 1e-12 points."""

import json
import shutil
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.documents import documents
from pipelines.reputation.explain import explain
from pipelines.reputation.export import export_warehouse
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.scores import scores
from pipelines.reputation.sql import one_row
from pipelines.reputation.warehouse import Warehouse
from tests.reputation import naive, policies
from tests.reputation.agreement import _connection
from tests.reputation.history import DAY, MINUTE, NOW, Event, at, events_table
from tests.reputation.policies import EVENTS, policy
from tests.reputation.strategies import FEWER, ONE, histories
from tests.reputation.test_incremental import lake, rebuilt, rows, scratch, stories

HOUR = 60 * MINUTE
KARMA = """
name = "karma"
version = "1"
windows_days = [7]
[actions.Up]
points = { from = "n", minimum = -1000000, maximum = 1000000, digits = 6 }
half_life_days = 30
[actions.Half]
points = 1
half_life_days = 0.5
[actions.Kept]
points = { from = "n", minimum = -1000000, maximum = 1000000, digits = 6 }
"""
EPOCH = 16 * 30 * DAY
"""Length of an epoch of the longer half-life; the shorter one's is 8 days."""
WITHIN = 1e-12


def karma(text: str = "") -> Policy:
    return parse_policy(KARMA.replace("[7]", f"[7]\n{text}"))


def up(number: int, t: int, n: str = "8", user: str = "ann", action: str = "Up") -> Event:
    return Event(f"e{number}", user, action, t, {"n": n})


def displayed(events: list[Event], as_of: int, rules: Policy | None = None) -> dict[str, float]:
    """Return the all-time scores by user."""
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        return dict(scores(connection, rules or karma(), at(as_of)).select("user_id", "all_time_score").iter_rows())


@pytest.mark.slow
def test_points_halve_from_step_to_step() -> None:
    """A score is as of the end of its step: it is constant within the step, and never exceeds the points."""
    events = [up(1, NOW - 30 * DAY)]
    assert [displayed(events, NOW + shift)["ann"] for shift in (0, 30 * DAY, 150 * DAY)] == [4.0, 2.0, 0.125]
    first, *others = (displayed(events, NOW + shift)["ann"] for shift in (1, 30 * MINUTE, HOUR))
    assert others == [first, first]
    assert 4.0 > first > displayed(events, NOW + HOUR + 1)["ann"]
    assert 8.0 > displayed([up(1, NOW)], NOW + 1)["ann"] > 7.99


@pytest.mark.slow
def test_a_step_is_part_of_the_policy() -> None:
    """Steps of a quarter of an hour, or of half a day, begin with the UTC day."""
    events = [up(1, NOW - 30 * DAY)]
    quarters, halves = karma("decay_step_minutes = 15"), karma("decay_step_minutes = 720")
    assert displayed(events, NOW + 15 * MINUTE, quarters) == displayed(events, NOW + 1, quarters)
    assert displayed(events, NOW + 15 * MINUTE + 1, quarters)["ann"] < displayed(events, NOW + 1, quarters)["ann"]
    noon = NOW + 12 * HOUR
    assert displayed(events, NOW + 1, halves) == displayed(events, noon, halves) == displayed(events, noon)


def test_points_that_do_not_decay_stay_exact() -> None:
    """Beside points of two half-lives they keep every digit; each view has the sum of all three."""
    kept = [up(1, NOW - DAY, "200000.000001", action="Kept"), up(2, NOW - 20 * DAY, "0.1", action="Kept")]
    events = [*kept, up(3, NOW - 30 * DAY, "3"), up(4, NOW - DAY, action="Half")]
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        row = scores(connection, karma(), at(NOW)).row(0, named=True)
    assert (row["all_time_score"], row["last_7_days_score"]) == (200_001.850001, 200_000.250001)
    assert displayed(kept, NOW + 100 * EPOCH) == {"ann": 200_000.100001}


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(1, 400 * DAY), st.decimals(-1000, 1000, places=6)), min_size=1, max_size=20),
    st.integers(0, EPOCH),
)
def test_the_error_is_bounded(history: list[tuple[int, Decimal]], later: int) -> None:
    """Anywhere in an epoch, a score is exact to within 1e-12 points plus 1e-15 of the points that it contains."""
    events = [up(number, NOW - age, str(n)) for number, (age, n) in enumerate(history)]
    connection = _connection()
    connection.register("events", events_table(events))
    (score,) = scores(connection, karma(), at(NOW + later))["all_time_score"]
    exact = naive.reputations(events, karma(), NOW + later)["ann"]
    total = sum(abs(number) for _, number in history)
    assert abs(Fraction(score) - exact.views["all_time"].score) < Fraction(1, 10**12) + Fraction(total) / 10**15


@pytest.mark.slow
def test_the_largest_points_fit() -> None:
    """A thousand contributions of a million points, just before the end of an epoch, where sums are largest."""
    end = -(-NOW // EPOCH) * EPOCH
    expected = pytest.approx(1e9 * 2 ** (-1 / (30 * DAY)), rel=1e-15)
    assert displayed([up(n, end - 1, "1000000") for n in range(1000)], end)["ann"] == expected
    for far in (end - DAY, end, end + DAY, end + EPOCH):
        assert displayed([up(1, far - 30 * DAY, "1000000")], far)["ann"] == pytest.approx(500_000, rel=1e-15)


@pytest.mark.slow
def test_only_affected_users_are_recomputed(tmp_path: Path) -> None:
    """Within a step, only the user of a new event; at a step, no events are read, and every score changes."""
    path, old = tmp_path / "warehouse.duckdb", [up(n, NOW - DAY - n, user=f"user-{n}") for n in range(5)]
    before, after = lake(tmp_path, [old]), lake(tmp_path, [old, [up(9, NOW + 2, user="user-3")]])
    derive(before, karma(), at(NOW + 1), path)
    with open_draft(path) as draft:
        within = draft.refresh(after, karma(), at(NOW + HOUR))
        step = draft.refresh(after, karma(), at(NOW + HOUR + 1))
        same = draft.refresh(after, karma(), at(NOW + 2 * HOUR))
        draft.publish()
    assert [(done.rebuild_reason, done.affected_users) for done in (within, step, same)] == [
        (None, n) for n in (1, 0, 0)
    ]
    changed = [None if done.changed_users is None else done.changed_users.to_list() for done in (within, step, same)]
    assert changed == [["user-3"], [], []]
    assert [done.has_decayed for done in (within, step, same)] == [False, True, False]
    assert rows(path) == rebuilt(tmp_path, after, karma(), NOW + 2 * HOUR)


@pytest.mark.slow
def test_a_new_epoch_is_a_rebuild(tmp_path: Path) -> None:
    """The sums of the previous epoch could only be scaled inexactly; the reason names the epoch."""
    rules, snapshot = (
        policy(actions={"Done": {"half_life_days": 30}}),
        lake(tmp_path, [[Event("e", "ann", "Done", NOW)]]),
    )
    end = -(-NOW // EPOCH) * EPOCH
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        draft.refresh(snapshot, rules, at(NOW + 1))
        assert draft.refresh(snapshot, rules, at(end - HOUR)).rebuild_reason is None
        reason = "the policy, its decay epoch, the SQL or the lake changed"
        assert draft.refresh(snapshot, rules, at(end)).rebuild_reason == reason
        assert draft.refresh(snapshot, rules, at(end + HOUR)).rebuild_reason is None
        draft.publish()
    assert rows(tmp_path / "warehouse.duckdb") == rebuilt(tmp_path, snapshot, rules, end + HOUR)


MOMENTS = [
    NOW + shift for shift in (0, 1, 29 * MINUTE, 30 * MINUTE, HOUR, HOUR + 1, 7 * DAY, 8 * DAY, 30 * DAY + 1, EPOCH)
]


def decaying() -> st.SearchStrategy[Policy]:
    """Return policies with points of two half-lives and points that do not decay, and any other features."""
    halving = {"Rated": {"half_life_days": "0.5"}, "Starred": {"half_life_days": 30, "penalties_expire_after_days": 7}}
    steps = st.sampled_from([30, 60, 720])
    return st.builds(
        lambda tables, step: policy(
            **policies.allowed((tables | {"actions": halving, "decay_step_minutes": step},))[0]
        ),
        policies.everything(),
        steps,
    )


@pytest.mark.slow
@ONE
@given(stories(histories(*EVENTS), MOMENTS), decaying())
def test_refreshes_equal_a_rebuild(story: list[tuple[list[Event], int]], rules: Policy) -> None:
    """Within a step, across steps and epochs: the sums of a rebuild, and scores of exact arithmetic.

    `incremental-equals-rebuild`, and a rebuild only where an epoch ends.
    """
    with scratch() as folder:
        commits: list[list[Event]] = []
        with open_draft(folder / "warehouse.duckdb") as draft:
            before = None
            for events, as_of in story:
                commits.append(events)
                snapshot = lake(folder / "lake", commits)
                done = draft.refresh(snapshot, rules, at(as_of))
                in_force = rules.at(at(as_of))
                assert (done.rebuild_reason is None) == (in_force == before)
                before = in_force
            draft.publish()
        assert rows(folder / "warehouse.duckdb") == rebuilt(folder, snapshot, rules, story[-1][1])
        assert_exact(
            folder / "warehouse.duckdb", [event for events in commits for event in events], rules, story[-1][1]
        )


def assert_exact(path: Path, events: list[Event], rules: Policy, as_of: int) -> None:
    """Assert that the scores of a warehouse are those of the naive implementation."""
    expected = naive.reputations(events, rules, as_of)
    with Warehouse(path) as warehouse:
        served = {row["user_id"]: row for row in warehouse.reputation().iter_rows(named=True)}
    assert served.keys() == expected.keys()
    for user_id, reputation in expected.items():
        for view, numbers in reputation.views.items():
            assert served[user_id][f"{view}_score"] == pytest.approx(float(numbers.score), rel=1e-15, abs=WITHIN)


@pytest.mark.slow
@FEWER
@given(histories(*EVENTS), decaying(), st.sampled_from(MOMENTS))
def test_explanations_add_up_exactly(events: list[Event], rules: Policy, as_of: int) -> None:
    """The listed contributions add up exactly to the displayed score (`explainable`)."""
    connection = _connection()
    connection.register("events", events_table(events))
    for user_id, score in scores(connection, rules, at(as_of)).select("user_id", "all_time_score").iter_rows():
        ledger = explain(connection, rules, user_id, at(as_of))
        total = sum(ledger["earned"].to_list(), Decimal(0))
        assert float(total * 10**12) / 1e12 == score
        assert ledger.height == 0 or ledger["score"].to_list()[-1] == total
    connection.unregister("events")


def test_an_explanation_is_as_of_the_end_of_the_step() -> None:
    """The listed points of a contribution are those that remain at the end of the step."""
    events = [up(1, NOW - 30 * DAY), up(2, NOW - DAY, action="Half"), up(3, NOW - 60 * DAY, "-4")]
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        ledger = explain(connection, karma(), "ann", at(NOW - 30 * MINUTE))
    assert ledger.select("points", "earned").rows() == [
        (Decimal(-4), Decimal(-1)),
        (Decimal(8), Decimal(4)),
        (Decimal(1), Decimal("0.25")),
    ]


@pytest.mark.slow
def test_documents_name_the_moment(tmp_path: Path) -> None:
    """A step changes every document; if only the moment differs, the digest stays the same."""
    path, events = tmp_path / "warehouse.duckdb", [up(1, NOW - DAY), up(2, NOW - DAY, "0", "bob")]
    found: list[tuple[list[str], list[int]]] = []
    for as_of in (NOW + 1, NOW + HOUR, NOW + HOUR + 1):
        derive(lake(tmp_path, [events]), karma(), at(as_of), path)
        frame = documents(path)
        found.append(([json.loads(text)["decayed_to"] for text in frame["document"]], frame["digest"].to_list()))
    assert [moments for moments, _ in found] == [["2024-03-01T01:00:00Z"] * 2] * 2 + [["2024-03-01T02:00:00Z"] * 2]
    first, same, step = (digests for _, digests in found)
    assert first == same
    assert [a == b for a, b in zip(first, step, strict=True)] == [False, True]
    with Warehouse(path) as warehouse:
        assert warehouse.info.decayed_to == at(NOW + 2 * HOUR)


def test_the_end_of_time(tmp_path: Path) -> None:
    """A moment in the last step that Python can represent is not an error."""
    last = at(NOW).replace(year=9999, month=12, day=31, hour=23, minute=59)
    derive(lake(tmp_path, [[up(1, NOW)]]), karma(), last, tmp_path / "warehouse.duckdb")
    with Warehouse(tmp_path / "warehouse.duckdb") as warehouse:
        assert warehouse.reputation("ann")["all_time_score"].to_list() == [0.0]


def test_a_view_reads_no_events(tmp_path: Path) -> None:
    """The published `reputation` needs only the stored sums: a reader's query costs no derivation."""
    derive(lake(tmp_path, [[up(1, NOW - 30 * DAY)]]), karma(), at(NOW), tmp_path / "warehouse.duckdb")
    export_warehouse(tmp_path / "warehouse.duckdb", tmp_path / "exported.duckdb")
    shutil.rmtree(tmp_path / "1-0")  # the lake
    with duckdb.connect(tmp_path / "exported.duckdb", read_only=True) as connection:
        assert one_row(connection.execute("SELECT all_time_score FROM reputation")) == (4.0,)
        assert one_row(connection.execute("SELECT count(*) FROM reputation_sums")) == (1,)
