"""Bitcoin OTC, real ratings by real users: every number against two independent programs."""

import csv
from datetime import datetime
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from pipelines.lake.tables import Snapshot
from pipelines.reputation.derive import derive
from pipelines.reputation.documents import documents
from pipelines.reputation.policy_file import load_policy, parse_policy
from pipelines.reputation.scores import scores
from tests.conftest import SHARED_DATA
from tests.reputation.history import Event, snapshot_of

FOLDER = SHARED_DATA / "bitcoin-otc"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"the Bitcoin OTC data are not at {FOLDER}")


def microseconds(seconds: str) -> int:
    seconds_part, _, fraction = seconds.partition(".")
    return int(seconds_part) * 1_000_000 + int(fraction.ljust(6, "0")[:6])


@cache
def ratings() -> list[Event]:
    with (FOLDER / "ratings.csv").open(newline="") as file:
        return [
            Event(
                event_id=str(number),
                user_id=row["to"],
                action_type="UserRated",
                t=microseconds(row["time"]),
                metadata={"rating": row["feature"], "rater_id": row["from"]},
            )
            for number, row in enumerate(csv.DictReader(file))
        ]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    events = ratings()
    return snapshot_of(tmp_path_factory.mktemp("otc"), events[1::3], events[::3], events[2::3])


def expected(year: int) -> pl.DataFrame:
    frame = pl.read_csv(FOLDER / "expected_scores.csv", schema_overrides={"user_id": pl.String})
    return frame.filter(pl.col("as_of") == f"{year}-01-01T00:00:00Z").sort("user_id")


def test_all_rows_are_loaded() -> None:
    """The three years together are the 9,913 rows of the file."""
    assert sum(expected(year).height for year in (2012, 2013, 2014)) == 9_913


@pytest.mark.slow
@pytest.mark.parametrize("year", [2012, 2013, 2014])
def test_sums_and_counts_are_exact(year: int, snapshot: Snapshot) -> None:
    """The default policy gives every user's sum and count, of all time and of the last 30 days."""
    as_of = datetime.fromisoformat(f"{year}-01-01T00:00:00Z")
    columns = {
        "sum_all_time": "all_time_score",
        "n_all_time": "all_time_events",
        "sum_last_30_days": "last_30_days_score",
        "n_last_30_days": "last_30_days_events",
    }
    got = scores(snapshot, load_policy("default"), as_of).select(
        "user_id", **{k: pl.col(v) for k, v in columns.items()}
    )
    assert got.equals(expected(year).select("user_id", *columns))


TRUST = """
name = "trust"
version = "1"
windows_days = [30]
[actions.UserRated]
rating = { from = "rating", minimum = -10, maximum = 10 }
points = { from = "rating", minimum = -10, maximum = 10 }
[measures]
positives = { formula = "positives", positive_from = 1 }
beta = { formula = "beta", positive_from = 1 }
wilson = { formula = "wilson", positive_from = 1, z = 1.959963984540054 }
"""


@pytest.mark.parametrize("year", [2012, 2013, 2014])
def test_shares_of_positive_ratings_hold_to_a_billionth(year: int, snapshot: Snapshot) -> None:
    """Positive ratings exactly, Beta expectation and Wilson lower bound to 1e-9."""
    as_of = datetime.fromisoformat(f"{year}-01-01T00:00:00Z")
    got = scores(snapshot, parse_policy(TRUST), as_of)
    expected_shares = expected(year)
    assert got["all_time_positives"].equals(expected_shares["n_positive"], check_names=False)
    for column, reference in [("beta", "beta_expectation"), ("wilson", "wilson_lower_95")]:
        assert (got[f"all_time_{column}"] - expected_shares[reference]).abs().max() < 1e-9


KARMA = """
name = "karma"
version = "1"
[actions.UserRated]
points = { from = "rating", minimum = -10, maximum = 10 }
half_life_days = 90
"""


@pytest.mark.parametrize("year", [2012, 2013, 2014])
def test_decay_holds_to_a_billionth(year: int, snapshot: Snapshot) -> None:
    """The sum with a half-life of 90 days, to 1e-9."""
    got = scores(snapshot, parse_policy(KARMA), datetime.fromisoformat(f"{year}-01-01T00:00:00Z"))
    assert (got["all_time_score"] - expected(year)["decay_half_life_90d"]).abs().max() < 1e-9


@pytest.mark.slow
def test_arrival_order_and_batching_change_no_document(snapshot: Snapshot, tmp_path: Path) -> None:
    """In another order and other batches, the same events give the same documents, byte for byte."""
    events = sorted(ratings(), key=lambda event: event.event_id[::-1])
    shuffled = snapshot_of(tmp_path / "lake", events[:100], events[100:20_000], events[20_000:])
    as_of = datetime.fromisoformat("2014-01-01T00:00:00Z")
    made: list[pl.DataFrame] = []
    for number, source in enumerate((snapshot, shuffled)):
        path = tmp_path / f"{number}.duckdb"
        derive(source, load_policy("decayed-karma"), as_of, path)
        made.append(documents(path))
    assert made[0].height > 3_000
    assert made[0].equals(made[1])
