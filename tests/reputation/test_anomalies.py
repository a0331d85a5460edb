"""Anomalies: their statistics against independently known numbers, and planted anomalies in simulated worlds."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.simulate.anomalies import Anomaly, plant_drift, plant_rater_burst, plant_review_bomb, plant_ring
from pipelines.simulate.story import BOMBED_USER
from pipelines.simulate.world import Span, build_world
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of, us

ANOMALIES = ("review_bombs", "rater_bursts", "reciprocal_rings", "drift")


def rating(number: int, day: int, user_id: str, rater_id: str, stars: int) -> Event:
    metadata = {"rating": str(stars), "rater_id": rater_id}
    return Event(f"e{number:03}", user_id, "DriverRated", NOW - (31 - day) * DAY + number, metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("anomalies")


def warehouse_of(folder: Path, events: list[Event]) -> Warehouse:
    derive(snapshot_of(folder / "lake", events), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    return Warehouse(folder / "warehouse.duckdb")


@cache
def world(seed: int) -> pa.Table:
    """Return a world without the review-bombed user of its story."""
    return build_world(np.random.default_rng(seed), 6_000, Span(NOW - 60 * DAY, NOW)).filter(
        pc.field("user_id") != BOMBED_USER
    )


def events_of(table: pa.Table) -> list[Event]:
    columns = ("event_id", "user_id", "action_type", "event_time", "metadata")
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return [Event(event_id, user, action, us(time), dict(entries)) for event_id, user, action, time, entries in rows]


@pytest.fixture(scope="module")
def quiet(folder: Path) -> Iterator[Warehouse]:
    """Derive a world without anomalies; query it once, so that its macros exist."""
    with warehouse_of(folder / "quiet", events_of(world(1))) as warehouse:
        warehouse.trend("drift")
        yield warehouse


@pytest.fixture(scope="module")
def anomalous(folder: Path) -> Iterator[tuple[Warehouse, dict[str, Anomaly]]]:
    """Derive the same world with one anomaly of each kind."""
    rng, events, planted = np.random.default_rng(3), world(1), {}
    events, planted["drift"] = plant_drift(rng, events, 1.0)
    events, planted["reciprocal_rings"] = plant_ring(rng, events, 4, 3)
    events, planted["review_bombs"] = plant_review_bomb(rng, events, 15)
    events, planted["rater_bursts"] = plant_rater_burst(rng, events, 15)
    with warehouse_of(folder / "troubled", events_of(events)) as warehouse:
        yield warehouse, planted


def number(warehouse: Warehouse, expression: str) -> float:
    return warehouse._connection.sql(f"SELECT {expression} AS number").pl()["number"][0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("gamma_poisson_tail(5, 1, 1)", 2**-5),  # a shape of one is geometric
        ("gamma_poisson_tail(3, 2, 1)", 1 - 1 / 4 - 1 / 4 - 3 / 16),
        ("gamma_poisson_tail(4, 4e9, 2e9)", 0.142876540),  # all but Poisson with mean 2
        ("gamma_poisson_tail(1, 2, 1)", 1.0),  # below the mean
        ("binomial_tail(9, 10, 0.5)", 11 / 1024),
        ("binomial_tail(0, 7, 0.3)", 1.0),
        ("normal_tail(1.959963984540054)", 0.025),
        ("normal_tail(5)", 2.866515719e-7),
    ],
)
def test_tails_are_those_of_the_tables(expression: str, expected: float, quiet: Warehouse) -> None:
    """Each tail against a closed form or a published table."""
    assert number(quiet, expression) == pytest.approx(expected, rel=2e-3)


def test_benjamini_and_hochberg_step_up(quiet: Warehouse) -> None:
    """Of 0.01, 0.02, 0.039 and 0.9 in a family of four at 5 %, the third does not pass 3/4 of it, but 0.03 would."""
    query = """
        WITH tests AS (SELECT CAST(unnest([0.01, 0.02, {third}, 0.9]) AS DOUBLE) AS p_value, 4 AS family)
        FROM discoveries('tests', 0.05) ORDER BY p_value
    """
    assert quiet._connection.sql(query.format(third=0.039)).pl()["p_value"].to_list() == [0.01, 0.02]
    stepped = quiet._connection.sql(query.format(third=0.03)).pl()
    assert stepped["p_value"].to_list() == [0.01, 0.02, 0.03]
    assert stepped["q_value"].to_list() == pytest.approx([0.04, 0.04, 0.04])


def test_a_burst_is_judged_by_its_own_history(folder: Path) -> None:
    """Ten low ratings in a day are many for a user with one a day, not for one with ten a day."""
    events = [
        Event(
            f"{user}-{day}-{n}", user, "DriverRated", NOW - (31 - day) * DAY + n, {"rating": "1", "rater_id": f"r{n}"}
        )
        for user, usual in (("calm", 1), ("hated", 10))
        for day in range(30)
        for n in range(10 if day == 29 else usual)
    ]
    with warehouse_of(folder / "history", events) as warehouse:
        [alarm] = warehouse.trend("review_bombs").rows(named=True)
    assert (alarm["user_id"], alarm["observed"], alarm["low_raters"], alarm["average_before"]) == ("calm", 10, 10, 1.0)
    assert alarm["expected"] == pytest.approx(1, rel=0.1)


def test_a_raters_burst_by_hand(folder: Path) -> None:
    """One a day for nine days, then ten. A lone rater's prior is exponential with his mean of 1.9: (1+9)/(1/1.9+9)."""
    days = [*range(9), *[9] * 10]
    events = [rating(number, day, f"user-{number % 4}", "bob", 3) for number, day in enumerate(days)]
    with warehouse_of(folder / "rater", events) as warehouse:
        [alarm] = warehouse.trend("rater_bursts").rows(named=True)
    assert (alarm["user_id"], alarm["observed"], alarm["rated_users"], alarm["average"]) == ("bob", 10, 4, 3.0)
    assert alarm["expected"] == pytest.approx(10 / (1 / 1.9 + 9))


def test_a_pair_by_hand(folder: Path) -> None:
    """Six of 20 high ratings are returned, a share of 0.3: three of three have a chance of 0.027, twice among three."""
    praises = [("ann", "bob"), ("bob", "ann")] * 3 + [("cyd", f"rider-{number}") for number in range(14)]
    events = [rating(number, number, *praise, 5) for number, praise in enumerate(praises)]
    with warehouse_of(folder / "pair", events) as warehouse:
        rows = warehouse.trend("reciprocal_rings", least=3, fdr=0.05).rows(named=True)
    assert [(row["user_id"], row["observed"], row["ring"], row["ring_members"]) for row in rows] == [
        ("ann", 3, "ann", 2),
        ("bob", 3, "ann", 2),
    ]
    assert [rows[0][name] for name in ("expected", "q_value", "ring_density")] == pytest.approx([0.9, 0.0405, 1.0])


def test_a_drift_by_hand(folder: Path) -> None:
    """Ten each of 5 and 4, then of 2 and 1: z = (1.5 - 4.5) / sqrt(100 / 39 * (1/20 + 1/20)), tested once."""
    events = [rating(n, n // 20, "ada", "bob", stars) for n, stars in enumerate([5, 4] * 10 + [2, 1] * 10)]
    with warehouse_of(folder / "drift", events) as warehouse:
        [alarm] = warehouse.trend("drift").rows(named=True)
    assert (alarm["expected"], alarm["observed"], alarm["ratings_before"]) == (4.5, 1.5, 20)
    assert alarm["z"] == pytest.approx(-3 / (100 / 390) ** 0.5)
    assert alarm["day"] == alarm["first_alarm"]


@pytest.mark.parametrize("name", ANOMALIES)
def test_a_world_without_anomalies_is_quiet(name: str, quiet: Warehouse) -> None:
    """No alarm where nothing was planted."""
    assert quiet.trend(name).rows() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ANOMALIES)
def test_planted_anomalies_are_found(name: str, anomalous: tuple[Warehouse, dict[str, Anomaly]]) -> None:
    """Every planted user is reported within the planted days, with different expected and observed values."""
    warehouse, planted = anomalous
    anomaly = planted[name]
    alarms = warehouse.trend(name).filter(pl.col("day").is_between(anomaly.first_day, anomaly.last_day))
    found = alarms.filter(pl.col("user_id").is_in(list(anomaly.user_ids)))
    assert set(found["user_id"]) == anomaly.user_ids
    assert (found["expected"] != found["observed"]).all()
    assert found["score"].min() > 3


def test_a_ring_is_connected(anomalous: tuple[Warehouse, dict[str, Anomaly]]) -> None:
    """The four members are one ring, in which all praise each other."""
    warehouse, planted = anomalous
    rings = warehouse.trend("reciprocal_rings")
    assert set(rings["user_id"]) == planted["reciprocal_rings"].user_ids
    assert rings["ring"].n_unique() == 1
    assert rings["ring_members"].to_list() == [4] * 4
    assert rings["ring_density"].to_list() == [1.0] * 4


def test_bursts_are_found_by_the_hour(anomalous: tuple[Warehouse, dict[str, Anomaly]]) -> None:
    """The rater's burst lasts less than two hours; its evidence has its time and its targets."""
    warehouse, planted = anomalous
    alarms = warehouse.trend("rater_bursts", period="hour").rows(named=True)
    assert {alarm["user_id"] for alarm in alarms} == planted["rater_bursts"].user_ids
    assert alarms[0]["observed"] == 15
    assert 1 < alarms[0]["rated_users"] <= 15
    assert 1 <= alarms[0]["average"] <= 5
