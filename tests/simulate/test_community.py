"""The simulated community is what it says: who rates whom, where, and how well; and trust finds its ring, exactly."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from pipelines.errors import UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.simulate.community import CITIES, Community, simulate_community
from tests.reputation.history import Event, snapshot_of, us

END = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAYS = 3
POLICY = """
name = "ratings"
version = "1"
actions.DriverRated.rating = { from = "rating", minimum = 1, maximum = 5 }
actions.RiderRated.rating = { from = "rating", minimum = 1, maximum = 5 }
"""


@pytest.fixture(scope="module")
def community() -> Community:
    return simulate_community(1, 1_500, DAYS, END)


@pytest.fixture(scope="module")
def warehouse(community: Community, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("community")
    derive(snapshot_of(folder / "lake", _events(community)), parse_policy(POLICY), END, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as opened:
        yield opened


def _events(community: Community) -> list[Event]:
    return [
        Event(
            row["event_id"],
            row["user_id"],
            row["action_type"],
            us(row["event_time"]),
            {"rating": str(row["rating"]), "rater_id": row["rater_id"], "city": row["city"]},
        )
        for row in community.ratings.to_pylist()
    ]


def _frame(community: Community) -> pl.DataFrame:
    """Return the ratings, with whether each side is of the ring."""
    ring = list(community.ring)
    frame = pl.DataFrame(community.ratings)
    return frame.with_columns(
        rated_in=pl.col("user_id").is_in(ring), rater_in=pl.col("rater_id").is_in(ring)
    ).with_columns(within=pl.col("rated_in") & pl.col("rater_in"))


def test_is_a_function_of_its_arguments(community: Community) -> None:
    """Equal arguments give equal ratings; another seed, number, length or end has other ids."""
    assert simulate_community(1, 1_500, DAYS, END).ratings.equals(community.ratings)
    others = [(2, 1_500, DAYS, END), (1, 1_501, DAYS, END), (1, 1_500, 4, END), (1, 1_500, DAYS, END - timedelta(1))]
    ids = [set(simulate_community(*other).ratings["event_id"].to_pylist()) for other in others]
    own = set(community.ratings["event_id"].to_pylist())
    assert len(own) == len(community.ratings)
    assert not any(own & other for other in ids)


def test_drivers_and_riders_rate_each_other_within_the_days_and_their_city(community: Community) -> None:
    """A rating is of a driver by a rider or the other way, ordered by time, and both are of one of the cities."""
    frame = _frame(community)
    kinds = frame.select(
        "action_type", rated=pl.col("user_id").str.head(5), rater=pl.col("rater_id").str.head(5)
    ).unique()
    assert set(kinds.rows()) == {("DriverRated", "drive", "rider"), ("RiderRated", "rider", "drive")}
    assert frame["event_time"].is_sorted()
    assert frame["event_time"].is_between(END - timedelta(DAYS), END).all()
    assert frame["rating"].is_between(1, 5).all()
    homes = pl.concat(
        [frame.select("user_id", "city"), frame.select("city", user_id="rater_id").select("user_id", "city")]
    )
    assert homes.unique().group_by("user_id").len()["len"].max() == 1
    assert set(homes["city"]) == set(CITIES)


def test_the_ring_rates_itself_up_and_others_do_not(community: Community) -> None:
    """Within it all ratings are five stars, in both directions; from outside it has two at most; seeds are outside."""
    frame = _frame(community)
    assert set(frame.filter("within")["rating"]) == {5}
    assert set(frame.filter("within")["user_id"]) == set(frame.filter("within")["rater_id"]) == community.ring
    outside = frame.filter(pl.col("rated_in") & ~pl.col("rater_in"))
    assert outside.height > 0
    assert outside["rating"].max() == 2
    assert not community.ring & set(community.seeds)
    assert set(community.seeds) <= set(frame["rater_id"])


def test_trust_reaches_everyone_but_the_ring(community: Community, warehouse: Warehouse) -> None:
    """Those rated well whom trust from the seeds does not reach are the ring, all of it and no one else."""
    trust = warehouse.trend("trust", seeds=",".join(community.seeds))
    found = trust.filter((pl.col("weight") == 0) & (pl.col("average") > 0))
    assert set(found["user_id"]) == community.ring


@pytest.mark.parametrize(
    "wrong", [(-1, 500, 1, END), (1, 499, 1, END), (1, 500, 0, END), (1, 500, 1, END.replace(tzinfo=None))]
)
def test_refuses_invalid_arguments(wrong: tuple[int, int, int, datetime]) -> None:
    """A message names the arguments and what they have to be."""
    with pytest.raises(UsageError, match="a community has at least 500 rides"):
        simulate_community(*wrong)
