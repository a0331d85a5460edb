"""Recall, precision and false alarms of the anomaly trends on anomalies planted in simulated worlds.

Each kind is planted separately, in three strengths, four times in each of five worlds; worlds without anomalies, or
with benign changes that look similar, measure false alarms. An alarm is right if it names a user of an anomaly within
its days. For Bitcoin OTC, where there is no ground truth, alarms are only counted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.lakes import AS_OF, commit_rows
from benchmarks.report import save_results
from pipelines.contract.schema import EVENT, METADATA
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import create_lake
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.simulate.anomalies import (
    Anomaly,
    add_busy_day,
    add_newcomer,
    plant_drift,
    plant_rater_burst,
    plant_review_bomb,
    plant_ring,
)
from pipelines.simulate.story import BOMBED_USER
from pipelines.simulate.world import DAY_US, Span, build_world

EVENTS, DAYS, ANOMALIES_PER_WORLD = 20_000, 90, 4
SEEDS = range(1, 6)
_OTC = Path(__file__).parents[2] / "shared/data/bitcoin-otc/ratings.csv"
_END_US = int(AS_OF.timestamp()) * 1_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of anomaly in one strength, and the trend that should detect it."""

    trend: str
    label: str
    plant: Callable[..., tuple[pa.Table, Anomaly]]
    strength: tuple[float, ...]


KINDS = [
    Kind("review_bombs", "6 low ratings", plant_review_bomb, (6,)),
    Kind("review_bombs", "10 low ratings", plant_review_bomb, (10,)),
    Kind("review_bombs", "20 low ratings", plant_review_bomb, (20,)),
    Kind("rater_bursts", "8 ratings an hour", plant_rater_burst, (8,)),
    Kind("rater_bursts", "12 ratings an hour", plant_rater_burst, (12,)),
    Kind("rater_bursts", "20 ratings an hour", plant_rater_burst, (20,)),
    Kind("reciprocal_rings", "3 users, 2 rounds", plant_ring, (3, 2)),
    Kind("reciprocal_rings", "4 users, 3 rounds", plant_ring, (4, 3)),
    Kind("reciprocal_rings", "6 users, 3 rounds", plant_ring, (6, 3)),
    Kind("drift", "2 stars less in 25 %", plant_drift, (0.25,)),
    Kind("drift", "2 stars less in 50 %", plant_drift, (0.5,)),
    Kind("drift", "2 stars less in 100 %", plant_drift, (1.0,)),
]
BENIGN_CHANGES: dict[str, Callable[[np.random.Generator, pa.Table], pa.Table]] = {
    "nothing": lambda _, world: world,
    "a day three times as busy": lambda rng, world: add_busy_day(rng, world, 3),
    "a day ten times as busy": lambda rng, world: add_busy_day(rng, world, 10),
    "a newcomer with 20 ratings a day": lambda rng, world: add_newcomer(rng, world, 20),
}
TRENDS = list(dict.fromkeys(kind.trend for kind in KINDS))


def run(folder: Path) -> None:
    """Measure each kind and the false alarms in benign worlds; count the alarms of Bitcoin OTC."""
    rows = [_measured(folder / str(number), number, kind) for number, kind in enumerate(KINDS)]
    columns = ("planted", "trend", "pieces", "found", "users", "named", "alarms", "right", "precision", "recall")
    extra = {"false_alarms": _false_alarms(folder), "bitcoin_otc": _bitcoin_otc(folder)}
    for name, value in extra.items():
        print(f"{name}: {json.dumps(value, indent=2)}")
    save_results("anomalies", columns, rows, "recall", events=EVENTS, days=DAYS, worlds=len(SEEDS), **extra)


def _measured(folder: Path, number: int, kind: Kind) -> tuple[Any, ...]:
    """Return the result of one kind over all worlds; recall is per user, precision per alarm."""
    pieces = found = users = named = alarms = right = 0
    for seed in SEEDS:
        rng, world, planted = np.random.default_rng([seed, number]), _world(seed), list[Anomaly]()
        for _ in range(ANOMALIES_PER_WORLD):
            world, anomaly = kind.plant(rng, world, *kind.strength)
            planted.append(anomaly)
        with _warehouse(folder / str(seed), world) as warehouse:
            raised = set(warehouse.trend(kind.trend).select("user_id", "day").rows())
        hits = [{alarm for alarm in raised if _is_hit(anomaly, *alarm)} for anomaly in planted]
        pieces += len(planted)
        found += sum(map(bool, hits))
        users += sum(len(anomaly.user_ids) for anomaly in planted)
        named += sum(len({user for user, _ in hit}) for hit in hits)
        alarms += len(raised)
        right += len(set().union(*hits))
    return kind.label, kind.trend, pieces, found, users, named, alarms, right, right / max(1, alarms), named / users


def _false_alarms(folder: Path) -> dict[str, dict[str, int]]:
    """Return the number of alarms of each trend in worlds without anomalies, by benign change."""
    found = {name: dict.fromkeys(TRENDS, 0) for name in BENIGN_CHANGES}
    for number, (name, add) in enumerate(BENIGN_CHANGES.items()):
        for seed in SEEDS:
            world = add(np.random.default_rng([seed, number]), _world(seed))
            with _warehouse(folder / f"benign-{number}-{seed}", world) as warehouse:
                for trend in TRENDS:
                    found[name][trend] += warehouse.trend(trend).height
    return found


def _is_hit(anomaly: Anomaly, user_id: str, day: date) -> bool:
    return user_id in anomaly.user_ids and anomaly.first_day <= day <= anomaly.last_day


def _world(seed: int) -> pa.Table:
    """Return a world without the user of its story who receives a review bomb."""
    world = build_world(np.random.default_rng(seed), EVENTS, Span(_END_US - DAYS * DAY_US, _END_US))
    return world.filter(pc.field("user_id") != BOMBED_USER)


def _warehouse(folder: Path, events: pa.Table) -> Warehouse:
    """Return the warehouse of a lake with these events."""
    count = len(events)
    places = {
        "topic_id": pa.repeat("measured", count),
        "topic": pa.repeat("events", count),
        "topic_partition": pa.repeat(pa.scalar(0, pa.int32()), count),
        "offset": pa.array(range(count), pa.int64()),
        "bus_time": events["event_time"],
    }
    for name, column in places.items():
        events = events.append_column(name, column)
    lake = create_lake(folder / "lake")
    commit_rows(lake, events, 0)
    path = folder / "warehouse.duckdb"
    derive(take_snapshot(lake), load_policy("default"), AS_OF, path)
    return Warehouse(path)


def _bitcoin_otc(folder: Path) -> dict[str, dict[str, float]] | None:
    """Return the counts of alarms, users and days by trend; None if the data are missing."""
    if not _OTC.exists():
        print(f"{_OTC} is missing: Bitcoin OTC is skipped")
        return None
    with _warehouse(folder / "otc", _otc_events()) as warehouse:
        alarms = {name: warehouse.trend(name) for name in TRENDS}
    return {
        name: {"alarms": rows.height, "users": rows["user_id"].n_unique(), "days": rows["day"].n_unique()}
        for name, rows in alarms.items()
    }


def _otc_events() -> pa.Table:
    ratings = pl.read_csv(_OTC, schema_overrides={"from": pl.String, "to": pl.String, "feature": pl.String})
    ids = [str(number) for number in range(ratings.height)]
    entries = [
        [("rating", rating), ("rater_id", rater)] for rating, rater in ratings.select("feature", "from").iter_rows()
    ]
    times = (ratings["time"] * 1_000_000).round().cast(pl.Int64)
    columns = [
        pa.array(ids),
        ratings["to"].to_arrow().cast(pa.string()),
        pa.repeat("UserRated", len(ids)),
        times.to_arrow().cast(EVENT.field("event_time").type),
        pa.array(entries, METADATA),
    ]
    return pa.table(columns, schema=EVENT)
