"""Providers rate their customers, and the ring is what it says; trust finds it, exactly."""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.simulate.community import RING_DRIVERS, RING_RIDERS, build_community
from pipelines.simulate.world import CITIES, DAY_US, Span
from tests.reputation.history import Event, snapshot_of, us

END = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPAN = Span(us(END) - 20 * DAY_US, us(END))
EVENTS = 20_000
SEEDS = [
    *("rider-bob", "rider-cyd", "rider-eve", "buyer-ann", "buyer-joe", "buyer-kim"),
    *(f"{kind}-{number:06d}" for kind in ("rider", "buyer") for number in range(6)),
]
"""Those who rate the people of the story, and some others."""
RING = {*RING_DRIVERS, *RING_RIDERS}


@pytest.fixture(scope="module")
def world() -> pl.DataFrame:
    """Return the events, with the entries of their metadata as columns."""
    table = build_community(np.random.default_rng(1), EVENTS, SPAN)
    entries = pl.DataFrame([dict(pairs) for pairs in table["metadata"].to_pylist()], infer_schema_length=None)
    return pl.concat([pl.DataFrame(table.drop_columns("metadata")), entries], how="horizontal")


@pytest.fixture(scope="module")
def warehouse(world: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("community")
    ratings = world.filter(pl.col("rating").is_not_null()).select(
        "event_id", "user_id", "action_type", "event_time", "rating", "rater_id", "city"
    )
    events = [
        Event(*row[:3], us(row[3]), dict(zip(("rating", "rater_id", "city"), row[4:], strict=True)))
        for row in ratings.rows()
    ]
    derive(snapshot_of(folder / "lake", events), load_policy("levels-by-city"), END, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as opened:
        yield opened


def test_has_exactly_the_events_by_time_each_once(world: pl.DataFrame) -> None:
    """Whatever the size, of which the smallest has no ring."""
    assert (world.height, world["event_id"].n_unique(), world["event_time"].is_sorted()) == (EVENTS, EVENTS, True)
    small = pl.DataFrame(build_community(np.random.default_rng(1), 300, SPAN).drop_columns("metadata"))
    assert (small.height, small["user_id"].is_in(list(RING)).any()) == (300, False)
    assert world["event_time"].is_between(END - pl.duration(days=20), END).all()


def test_customers_are_rated_for_what_they_rated(world: pl.DataFrame) -> None:
    """By the driver or seller whom they rated, not before that, in the same city, and of each transaction once."""
    given = world.filter(
        pl.col("action_type").is_in(["DriverRated", "ReviewPosted"]), pl.col("transaction_id").is_not_null()
    )
    answers = world.filter(pl.col("action_type").is_in(["RiderRated", "BuyerRated"]))
    pairs = answers.join(
        given, left_on=["user_id", "rater_id"], right_on=["rater_id", "user_id"], suffix="_given"
    ).filter(pl.col("transaction_id") == pl.col("transaction_id_given"))
    assert pairs.height == answers.height == answers["transaction_id"].n_unique() > 0.14 * EVENTS
    honest = pairs.filter(~pl.col("user_id").is_in(list(RING)))
    assert (honest["event_time"] >= honest["event_time_given"]).all()
    assert (pairs["city"] == pairs["city_given"]).all()
    assert set(answers["rating"]) == {"1", "2", "3", "4", "5"}
    kinds = answers.select("action_type", pl.col("user_id").str.split("-").list.first()).unique()
    assert set(kinds.rows()) == {("RiderRated", "rider"), ("BuyerRated", "buyer")}


def test_each_ride_and_rating_has_a_city(world: pl.DataFrame) -> None:
    """A provider works in one city, except for the one of the story who moves."""
    located = (
        world.filter(pl.col("action_type") == "TransactionCompleted").group_by("user_id").agg(pl.col("city").unique())
    )
    assert set(located["city"].explode()) == set(CITIES.to_pylist())
    assert located.filter(pl.col("city").list.len() > 1)["user_id"].to_list() == ["driver-ada"]
    assert world.filter(pl.col("rating").is_not_null())["city"].null_count() == 0


def test_the_ring_rates_itself_up_and_others_do_not(world: pl.DataFrame) -> None:
    """Within it all ratings are five stars, in both directions; from outside it has two at most."""
    members = list(RING)
    ratings = world.filter(pl.col("user_id").is_in(members), pl.col("rating").is_not_null())
    within = ratings.filter(pl.col("rater_id").is_in(members))
    outside = ratings.filter(~pl.col("rater_id").is_in(members))
    assert set(within["rating"]) == {"5"}
    assert set(within["user_id"]) == set(within["rater_id"]) == RING
    assert set(outside["rating"]) == {"1", "2"}
    assert set(outside["user_id"]) == set(RING_DRIVERS)
    assert world.filter(pl.col("rater_id").is_in(members))["user_id"].is_in(members).all()


def test_trust_reaches_all_with_several_ratings_but_the_ring(warehouse: Warehouse) -> None:
    """Those rated well, ten times or more, whom trust from the seeds does not reach are the ring, and no one else."""
    trust = warehouse.trend("trust", seeds=",".join(SEEDS))
    found = trust.filter(pl.col("weight") == 0, pl.col("average") > 0, pl.col("ratings_received") >= 10)
    assert set(found["user_id"]) == RING
