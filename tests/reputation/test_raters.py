"""Raters' weights: by hand, against the naive implementation, and a refresh that leaves the rows of a rebuild."""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PolicyError
from pipelines.reputation import raters as raters_module
from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.agreement import assert_agreement
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, snapshot_of
from tests.reputation.strategies import FEWER
from tests.reputation.test_incremental import assert_refreshes_equal_rebuilds, lake, scratch

USERS = ("ann", "bob", "cyd", "dan")
RULES = """
name = "weighed"
version = "1"
windows_days = [2]
retraction = { actions = ["Withdrawn"], target = "target" }
correction = { actions = ["Corrected"], target = "target" }
raters = { weight = "trust", seeds = "ann", minimum = 0.05, damping = 0.25, rounds = 3 }
[actions.UserRated]
points = 1
[actions.UserRated.rating]
from = "stars"
minimum = 1
maximum = 5
weight = { from = "helpful", minimum = 0, maximum = 9, digits = 2, missing = 1 }
[actions.Voted]
rating = { from = "vote", map = { up = 1, down = -1 } }
[measures]
rating_average = { formula = "mean", digits = 3 }
recent = { formula = "mean", half_life_days = 0.5, minimum_count = 2 }
newest = { formula = "mean", last = 2, minimum_count = 2, below_minimum = 3 }
prior = { formula = "bayesian", prior_mean = 3.5, prior_weight = 2, digits = 9 }
learned = { formula = "bayesian", prior = "global", prior_mean = 3, prior_weight = 2 }
trusted = { formula = "beta", positive_from = 4 }
sure = { formula = "wilson", positive_from = 4, negative_to = 2 }
liked = { formula = "share", positive_from = 4 }
likes = { formula = "positives", positive_from = 4 }
dislikes = { formula = "negatives", positive_from = 4, negative_to = 2 }
"""


def rated(rater: str, user: str, stars: int, days_ago: float, **more: str) -> Event:
    name = f"{rater}-{user}-{stars}-{days_ago}"
    metadata = {"stars": str(stars), "rater_id": rater, **more}
    return Event(name, user, "UserRated", NOW - int(days_ago * DAY), metadata)


HISTORY = [
    rated("ann", "bob", 5, 4.5),
    rated("bob", "cyd", 5, 3.5),
    rated("cyd", "dan", 1, 2.5),
    rated("ann", "dan", 5, 2.4),
    rated("dan", "bob", 2, 1.5, helpful="0.25"),
    rated("eve", "dan", 1, 0.5),
]


@pytest.mark.slow
def test_weights_by_hand(tmp_path: Path) -> None:
    """A rating weighs what its rater is trusted when its day begins, and the mean is that of the weighted ratings.

    A weight of the rating itself multiplies that of its rater: a quarter of what dan weighs, in bob's second rating.

    Before day 3 ann has rated bob and bob cyd: after three rounds ann has 1/4 + 27/64 of all trust, bob 3/4 x 7/16 and
    cyd the rest of what bob passed on. No one rated eve, so she has the minimum, as dan had until ann rated him.
    """
    derive(snapshot_of(tmp_path / "lake", HISTORY), parse_policy(RULES), AS_OF, tmp_path / "warehouse.duckdb")
    with Warehouse(tmp_path / "warehouse.duckdb") as warehouse:
        weights = {(row[0], row[1]): row[2] for row in warehouse.sql("FROM rater_weights").rows()}
        days = [(AS_OF - timedelta(days=age)).date() for age in (5, 3, 2)]
        assert (weights[days[0], "ann"], (days[0], "bob") in weights) == (1_000_000, False)
        # Round 1: ann 1/4, bob 3/4. Round 2: ann 1/4, bob 3/16, cyd 9/16. Round 3: cyd passes hers to ann, the seed.
        trust = {"ann": 1 / 4 + 3 / 4 * 9 / 16, "bob": 3 / 4 / 4, "cyd": 3 / 4 * 3 / 16}
        assert weights[days[1], "cyd"] == pytest.approx(1e6 * 3 * trust["cyd"], abs=2)
        bob = warehouse.explain("bob")
        assert bob["weight"].to_list() == [1.0, pytest.approx(weights[days[2], "dan"] / 4e6, abs=1e-6)]
        dan = warehouse.explain("dan")
        assert dan["weight"].to_list() == [pytest.approx(3 * trust["cyd"], abs=2e-6), 1.0, 0.05]
        expected = (1 * dan["weight"][0] + 5 + 1 * 0.05) / (dan["weight"].sum())
        assert warehouse.reputation("dan")["all_time_rating_average"][0] == pytest.approx(expected, abs=1e-3)
        assert warehouse.reputation("dan")["all_time_rating_count"][0] == 3
        assert "weight" not in warehouse.explain("dan", "default").columns


def events() -> st.SearchStrategy[list[Event]]:
    """Return ratings and votes of four users for each other, corrected and withdrawn, over five days."""
    one = st.builds(
        lambda kind, user, rater, number, age: (kind, user, rater, number, age),
        st.sampled_from(["UserRated", "UserRated", "Voted", "Withdrawn", "Corrected"]),
        *[st.sampled_from(USERS)] * 2,
        st.integers(0, 11),
        st.integers(0, 20),
    )
    return st.lists(one, min_size=3, max_size=12).map(
        lambda rows: [
            Event(
                f"e{place}",
                user,
                kind,
                NOW - age * DAY // 4 - place,
                {"stars": str(number % 6), "vote": ("up", "down", "?")[number % 3], "target": f"e{number}"}
                | ({"rater_id": rater} if number != 7 else {})
                | ({"helpful": ("0", "0.33", "9", "10")[age % 4]} if number % 2 else {}),
            )
            for place, (kind, user, rater, number, age) in enumerate(rows)
        ]
    )


@pytest.mark.slow
@given(events(), st.sampled_from([0, DAY // 3, 2 * DAY]))
@settings(max_examples=5, deadline=None)
def test_the_sql_agrees_with_the_naive_implementation(history: list[Event], before: int) -> None:
    """Every measure with weights, at any moment, whatever was withdrawn or corrected."""
    assert_agreement(history, parse_policy(RULES), NOW - before)


@pytest.mark.slow
@pytest.mark.parametrize("removed", ["", 'correction = { actions = ["Corrected"], target = "target" }\n'])
def test_a_refresh_leaves_the_rows_of_a_rebuild(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratings of the newest day are added to it; a late one, a late retraction and a new day rebuild, with a reason.

    Such a rebuild computes the weights of that day and of later ones, not of all days. Compared after each: the scores
    and the weights (`incremental-equals-rebuild`). With corrections, the weights of all users are kept.
    """
    rules, weighed = parse_policy(RULES.replace(removed, "")), record_weighed_days(monkeypatch)
    today, tomorrow = rated("bob", "dan", 4, 0.25), rated("cyd", "bob", 5, -0.5)
    late = rated("dan", "cyd", 5, 3.25)
    withdrawal = Event("w", "bob", "Withdrawn", NOW - 2 * DAY, {"target": HISTORY[0].event_id})
    points = Event("p", "ann", "Voted", NOW - 3 * DAY, {})
    steps = [([today], 0, []), ([tomorrow], DAY, [1]), ([late], DAY, [-3, -2, -1, 0, 1])]
    steps += [([withdrawal], DAY, [-1, 0, 1]), ([], 2 * DAY, []), ([points], 2 * DAY, [-2, -1, 0, 1])]
    commits = [HISTORY]
    with scratch() as folder, open_draft(folder / "warehouse.duckdb") as draft:
        draft.refresh(lake(folder / "lake", commits), rules, AS_OF)
        assert weighed == [-4, -3, -2, -1, 0]
        for added, later, days in steps:
            weighed.clear()
            commits.append(added)
            snapshot, as_of = lake(folder / "lake", commits), at(NOW + later)
            result = draft.refresh(snapshot, rules, as_of)
            assert weighed == days
            assert (result.rebuild_reason is not None) == bool(days), added
            draft.publish()
            derive(snapshot, rules, as_of, folder / "other" / "warehouse.duckdb")
            for table in ("reputation", "rater_weights", "user_days", "rating_priors", "user_ratings_given"):
                assert rows_of(folder / "warehouse.duckdb", table).equals(
                    rows_of(folder / "other" / "warehouse.duckdb", table)
                )


def record_weighed_days(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each day is added whose weights are computed from now on, counted from that of NOW."""
    weighed: list[int] = []
    weigh, today = raters_module._weigh, at(NOW - 1).date()

    def recorded(connection: duckdb.DuckDBPyConnection, of_day: str, day: date) -> None:
        weighed.append((day - today).days)
        weigh(connection, of_day, day)

    monkeypatch.setattr(raters_module, "_weigh", recorded)
    return weighed


def stories() -> st.SearchStrategy[list[tuple[list[Event], int]]]:
    """Return a history, then three commits of events of its newest day, each with the as_of of the refresh after it."""
    of_today = st.lists(events(), min_size=3, max_size=3).map(
        lambda parts: [[_today(event, number) for event in part] for number, part in enumerate(parts)]
    )
    moments = st.lists(st.sampled_from([NOW - DAY // 3, NOW, NOW + 1, NOW + DAY]), min_size=4, max_size=4).map(sorted)
    return st.builds(
        lambda first, later, at_moments: list(zip([first, *later], at_moments, strict=True)),
        *(events(), of_today, moments),
    )


def _today(event: Event, number: int) -> Event:
    """Return the event under another id, on the last day before NOW; it may withdraw or correct one of any day."""
    return replace(event, event_id=f"{event.event_id}-{number}", t=NOW - (NOW - event.t) // 6)


@pytest.mark.slow
@FEWER
@given(stories())
def test_refreshes_of_random_ratings_leave_the_rows_of_a_rebuild(story: list[tuple[list[Event], int]]) -> None:
    """Users rate each other and themselves, in cycles, with weights from 0 to 9 (`incremental-equals-rebuild`)."""
    assert_refreshes_equal_rebuilds(story, parse_policy(RULES))


@pytest.mark.slow
def test_a_seed_that_was_renamed_is_trusted_as_before(tmp_path: Path) -> None:
    """The policy names the former user_id, and events have either: every score and weight but the name stays.

    So may questions about the paths of a rater, and trust from seeds.
    """
    rules, late = parse_policy(RULES), rated("anna", "dan", 2, 0.3)
    for pairs, history in (([], [*HISTORY, rated("ann", "dan", 2, 0.3)]), ([("ann", "anna")], [*HISTORY, late])):
        snapshot = lake(tmp_path / f"lake{len(pairs)}", [history], pairs=pairs)
        derive(snapshot, rules, AS_OF, tmp_path / f"{len(pairs)}" / "warehouse.duckdb")
    for table in ("reputation", "rater_weights"):
        before, after = (rows_of(tmp_path / name / "warehouse.duckdb", table) for name in ("0", "1"))
        assert len(before) > 2
        assert before.with_columns(pl.col("user_id").replace("ann", "anna")).equals(after)
    with Warehouse(tmp_path / "1" / "warehouse.duckdb") as warehouse:
        assert "ann" not in warehouse.sql("FROM rater_weights")["user_id"]
        names = ("ann", "anna")
        paths = [warehouse.trust_paths("dan", name) for name in names]
        trust = [warehouse.trend("trust", seeds=f"{name}, eve") for name in names]
        assert paths[0].equals(paths[1])
        assert trust[0].equals(trust[1])
        assert trust[0].filter(pl.col("trust") > 0)["user_id"].to_list()[:1] == ["anna"]


def rows_of(path: Path, table: str) -> pl.DataFrame:
    with Warehouse(path) as warehouse:
        return warehouse.sql(f"FROM {table} ORDER BY ALL")


@pytest.mark.parametrize(
    ("raters", "message"),
    [
        ('{ weight = "trust" }', "seeds"),
        ('{ weight = "trust", seeds = [] }', "seeds"),
        ('{ weight = "trust", seeds = "ann", damping = 2 }', "damping"),
        ('{ weight = "fame", seeds = "ann" }', "weight"),
        ('{ weight = "trust", seeds = "ann", minimum = 1 }', "minimum"),
    ],
)
def test_mistakes_name_the_key(raters: str, message: str) -> None:
    """A policy without seeds, or with a share above one, is refused by its key."""
    with pytest.raises(PolicyError, match=message):
        parse_policy(f'name = "x"\nversion = "1"\nraters = {raters}\n')
