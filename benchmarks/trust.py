"""The trust of a million users from twenty million ratings (EigenTrust): the query of the trend `trust`, once.

The ratings are at random: how often a user rates, and is rated, has a heavy tail (Pareto, 1.5); one opinion in ten is
bad. They are read from a Parquet file, so loading and pairing them counts; the derivation, which decides
what counts, does not (`benchmarks refresh`). Processor time is that of all cores.
"""

import resource
import time
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.report import require_count, save_results
from pipelines.boundary.database import connect
from pipelines.boundary.locked_sql import literal
from pipelines.reputation.raters import define_trust
from pipelines.reputation.trends import find_trend

USERS, RATINGS, SEEDS = 1_000_000, 20_000_000, 100


def run(folder: Path) -> None:
    """Measure ten and twenty rounds."""
    _write_ratings(folder / "ratings.parquet")
    rows = [(f"{rounds} rounds", *_measure(folder / "ratings.parquet", rounds)) for rounds in (10, 20)]
    columns = ("trust", "seconds", "processor_seconds", "trusted_users")
    save_results("trust", columns, rows, "seconds", users=USERS, ratings=RATINGS, seeds=SEEDS)


def _measure(ratings: Path, rounds: int) -> tuple[float, float, int]:
    names = [f"user-{number:07}" for number in range(SEEDS)]
    values = {"seeds": names, "damping": 0.15, "rounds": rounds, "since": None, "until": None}
    with connect() as connection:
        define_trust(connection)
        connection.execute(f"SET temp_directory = {literal(str(ratings.with_name('spilled')))}")
        connection.execute(f"CREATE TEMP VIEW rating_counted AS FROM read_parquet({literal(str(ratings))})")
        began, used = time.monotonic(), _processor_seconds()
        rows = connection.sql(find_trend("trust").query, params=values).pl()
        seconds, processor = time.monotonic() - began, _processor_seconds() - used
    require_count("users with a rating", rows.height, rows["user_id"].n_unique())
    return round(seconds, 1), round(processor, 1), rows.filter(pl.col("trust") > 0).height


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _write_ratings(path: Path) -> None:
    rng = np.random.default_rng(1)
    opinions = rng.choice([-1.0, 0.5, 1.0], RATINGS, p=[0.1, 0.3, 0.6])
    frame = pl.DataFrame({"rater": _users(rng), "user": _users(rng), "opinion": opinions})
    frame.filter(pl.col("rater") != pl.col("user")).select(
        pl.format("user-{}", pl.col("user").cast(pl.String).str.zfill(7)).alias("user_id"),
        pl.format("user-{}", pl.col("rater").cast(pl.String).str.zfill(7)).alias("rater_id"),
        pl.lit(date(2026, 1, 1)).alias("day"),
        "opinion",
    ).write_parquet(path)


def _users(rng: np.random.Generator) -> np.ndarray:
    """Return the number of the user of each rating."""
    activity = 1 + rng.pareto(1.5, USERS)
    return np.searchsorted(np.cumsum(activity / activity.sum()), rng.random(RATINGS)).clip(max=USERS - 1)
