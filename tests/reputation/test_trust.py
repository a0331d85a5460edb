"""Trust among raters: fairness and goodness, and EigenTrust, by hand and by their formulas on Bitcoin OTC."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.boundary.database import connect
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.raters import define_trust
from pipelines.reputation.trends import find_trend
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of
from tests.reputation.naive_raters import WHOLE, trust
from tests.reputation.test_bitcoin_otc import FOLDER
from tests.reputation.test_bitcoin_otc import ratings as bitcoin_ratings

Open = Callable[[list[Event]], Warehouse]
Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
POLICY = """
name = "trust"
version = "1"
retraction = { actions = ["Withdrawn"], target = "target" }
[actions.UserRated]
rating = { from = "rating", minimum = -10, maximum = 10 }
"""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:

        def derived(events: list[Event]) -> Warehouse:
            path = tmp_path / "warehouse.duckdb"
            derive(snapshot_of(tmp_path / "lake", events), parse_policy(POLICY), AS_OF, path)
            return stack.enter_context(Warehouse(path))

        yield derived


def rated(rater: str, user: str, rating: int, age_days: int = 1) -> Event:
    metadata = {"rating": str(rating), "rater_id": rater}
    return Event(f"{rater}-{user}-{rating}-{age_days}", user, "UserRated", NOW - age_days * DAY, metadata)


def test_fairness_and_goodness_by_hand(opened: Open) -> None:
    """Two rounds: eve disagrees with ann and bob about cyd, so she is less fair and her opinion weighs less.

    Round 1: goodness of cyd (1 + 1 - 1) / 3 = 1/3; fairness of ann and bob 1 - (2/3) / 2 = 2/3, of eve 1 - (4/3) / 2 =
    1/3. Round 2: goodness (2/3 + 2/3 - 1/3) / 3 = 1/3, so it stays.
    """
    events = [rated("ann", "cyd", 10), rated("bob", "cyd", 10), rated("eve", "cyd", -10)]
    rows = {row["user_id"]: row for row in opened(events).trend("fairness_goodness").rows(named=True)}
    assert rows["cyd"]["goodness"] == pytest.approx(1 / 3)
    assert [rows[name]["fairness"] for name in ("ann", "bob", "eve")] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert (rows["cyd"]["fairness"], rows["ann"]["goodness"]) == (None, None)


def test_three_seeds_lack_a_millionth(opened: Open) -> None:
    """Weights are whole millionths, and divisions drop their remainder, as docs/trends.md says."""
    rows = opened([rated("eve", "zoe", 10)]).trend("trust", seeds="ann, bob, cyd").filter(pl.col("trust") > 0)
    assert rows.select("user_id", "trust", "weight").rows() == [
        (name, 333_333_333_333, 999_999) for name in ("ann", "bob", "cyd")
    ]


def test_opinions_are_ratings_that_count(opened: Open) -> None:
    """A rating of oneself, a withdrawn one and one without a rater do not count; two of a pair are one, their mean."""
    events = [
        rated("ann", "cyd", 10, 4),
        rated("cyd", "cyd", -10),
        rated("bob", "dan", 10, 3),
        rated("bob", "dan", 0, 2),
        rated("zoe", "cyd", -10),
        Event("w", "cyd", "Withdrawn", NOW - 1, {"target": "zoe-cyd--10-1"}),
        Event("n", "cyd", "UserRated", NOW - 1, {"rating": "-10"}),
    ]
    warehouse = opened(events)
    assert warehouse.trend("fairness_goodness").drop("day").rows() == [
        ("ann", 1.0, None, None, 1, 0),
        ("bob", 1.0, None, None, 2, 0),
        ("cyd", None, 1.0, 1.0, 0, 1),
        ("dan", None, 0.5, 0.5, 0, 2),
    ]
    recent = warehouse.trend("fairness_goodness", since=AS_OF.date().replace(month=2, day=28))
    assert recent["user_id"].to_list() == ["bob", "dan"]


@pytest.fixture(scope="module")
def bitcoin(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Return fairness and goodness of all members of Bitcoin OTC, after its last rating."""
    folder = tmp_path_factory.mktemp("otc-trust")
    derive(snapshot_of(folder / "lake", bitcoin_ratings()), parse_policy(POLICY), AS_OF, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as warehouse:
        return warehouse.trend("fairness_goodness")


def rounds_of(
    raters: Integers, users: Integers, weights: Numbers, start: float, count: int
) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield fairness and goodness of each round, by the published formulas, in plain numpy."""
    given, received = np.maximum(np.bincount(raters), 1), np.maximum(np.bincount(users), 1)
    fairness = np.full(len(given), start)
    for _ in range(count):
        goodness = np.bincount(users, fairness[raters] * weights) / received
        fairness = 1 - np.bincount(raters, np.abs(weights - goodness[users])) / 2 / given
        yield fairness, goodness


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.exists(), reason=f"the Bitcoin OTC data are not at {FOLDER}")
def test_bitcoin_otc_agrees_with_the_published_formulas(bitcoin: pl.DataFrame) -> None:
    """The whole network, against an independent program; and the paper's theorems: bounds, one solution, speed.

    Both lie in their ranges; another start gives the same numbers; after round t, fairness is within 2^-t and goodness
    within 2^-(t-1) of the limit.
    """
    events = bitcoin_ratings()
    raters, users = (
        np.array(list(map(int, names)))
        for names in zip(*((event.metadata["rater_id"], event.user_id) for event in events), strict=True)
    )
    weights = np.array([int(event.metadata["rating"]) for event in events]) / 10
    rounds = list(rounds_of(raters, users, weights, 1.0, 40))
    (fairness, goodness), (again, _) = rounds[-1], list(rounds_of(raters, users, weights, 0.0, 60))[-1]
    assert bitcoin.height == len({*raters, *users}) == 5_881
    given, received = bitcoin.drop_nulls("fairness"), bitcoin.drop_nulls("goodness")
    assert (given.height, received.height) == (4_814, 5_858)
    for rows, column, limit in ((given, "fairness", fairness), (received, "goodness", goodness)):
        assert np.abs(rows[column].to_numpy() - limit[rows["user_id"].cast(int).to_numpy()]).max() < 1e-9
    assert np.abs(fairness - again)[raters].max() < 1e-12
    for t, (early, good) in enumerate(rounds[:20], 1):
        assert np.abs(early - fairness)[raters].max() <= 2**-t
        assert np.abs(good - goodness)[users].max() <= 2 ** -(t - 1)
    assert given["fairness"].is_between(0, 1).all()
    assert received["goodness"].is_between(-1, 1).all()


def test_trust_by_hand(opened: Open) -> None:
    """Two rounds from ann with a damping of a half.

    Ann passes 3/4 of her trust to bob and 1/4 to cyd, bob all of his to cyd; cyd gives none on, and dan is not liked.
    Round 1: bob 3/8, cyd 1/8, ann the rest, 1/2. Round 2: bob 3/16, cyd 1/16 + 3/16 = 1/4, ann 9/16. Three are trusted,
    a third each on average: bob weighs 9/16 of a rating, cyd 3/4, ann all of one, and dan nothing.
    """
    events = [
        rated("ann", "bob", 9),
        rated("ann", "cyd", 3),
        rated("bob", "cyd", 1),
        rated("ann", "dan", -5),
        rated("dan", "eve", 10),
    ]
    rows = opened(events).trend("trust", seeds="ann", damping=0.5, rounds=2)
    assert rows.select("user_id", "trust", "weight", "trusted_by").rows() == [
        ("ann", WHOLE * 9 // 16, 1_000_000, None),
        ("bob", WHOLE * 3 // 16, 562_500, "ann"),
        ("cyd", WHOLE // 4, 750_000, "bob"),
        ("dan", 0, 0, None),
        ("eve", 0, 0, None),
    ]
    assert rows["trusted_by_share"].to_list()[2] == pytest.approx(3 / 16 / (9 / 64 + 3 / 16))
    assert rows["average"].to_list()[1:4] == pytest.approx([0.9, 0.2, -0.5])


@pytest.mark.slow
def test_a_ring_that_the_seeds_do_not_rate_weighs_nothing(opened: Open) -> None:
    """Ten honest members in a circle, five who praise each other: without seeds the ring is trusted, from two not.

    An unknown seed is a row of the result; without any rating it keeps what it is given.
    """
    honest = [rated(f"h{n}", f"h{(n + step) % 10}", 7) for n in range(10) for step in (1, 2, 3)]
    ring = [rated(f"r{n}", f"r{m}", 10) for n in range(5) for m in range(5) if n != m]
    praised = [rated(f"r{n}", "h0", 10) for n in range(5)]
    warehouse = opened(honest + ring + praised)
    seeded = warehouse.trend("trust", seeds="h1, h4")
    suspects = seeded.filter((pl.col("weight") == 0) & (pl.col("average") > 0.5))
    assert suspects["user_id"].to_list() == [f"r{n}" for n in range(5)]
    assert seeded.filter(pl.col("user_id").str.starts_with("h"))["weight"].min() > 500_000
    assert warehouse.trend("trust").filter(pl.col("user_id").str.starts_with("r"))["weight"].min() > 400_000
    [stranger] = warehouse.trend("trust", seeds="zed").filter(pl.col("trust") > 0).rows(named=True)
    assert (stranger["user_id"], stranger["trust"], stranger["ratings_received"]) == ("zed", WHOLE, 0)


@given(
    ratings=st.dictionaries(st.tuples(*[st.sampled_from("abcdef")] * 2), st.integers(-10, 10), min_size=1),
    seeds=st.sets(st.sampled_from("abcdef"), min_size=1),
    damping=st.integers(0, 1_000_000),
    rounds=st.integers(0, 6),
)
@settings(max_examples=20, deadline=None)
def test_trust_is_exact(
    ratings: dict[tuple[str, ...], int],
    seeds: set[str],
    damping: int,
    rounds: int,
    connection: duckdb.DuckDBPyConnection,
) -> None:
    """On random networks the query and an independent program agree on every unit; no unit is created."""
    events = [rated(rater, user, rating) for (rater, user), rating in ratings.items() if rater != user]
    rows = [(event.user_id, event.metadata["rater_id"], int(event.metadata["rating"]) / 10) for event in events]
    opinions = pl.DataFrame(rows, {"user_id": pl.String, "rater_id": pl.String, "opinion": pl.Float64}, orient="row")
    connection.register("rating_counted", opinions.with_columns(day=AS_OF.date()).to_arrow())
    values = {"seeds": sorted(seeds), "damping": damping / 1_000_000, "rounds": rounds, "since": None, "until": None}
    rows = connection.sql(find_trend("trust").query, params=values).pl().filter(pl.col("trust") > 0)
    local = {(rater, user): 100 * rating for (rater, user), rating in ratings.items() if rater != user}
    assert dict(rows.select("user_id", "trust").rows()) == trust(local, seeds, damping, rounds)
    assert rows["trust"].sum() <= WHOLE


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with connect() as opened:
        define_trust(opened)
        yield opened
