"""What-if comparison: two policies over the same events, without publishing anything."""

from datetime import datetime

import duckdb
import polars as pl

from pipelines.lake.tables import Snapshot
from pipelines.reputation.policy import Policy
from pipelines.reputation.scores import scores


def compare_policies(
    source: Snapshot | duckdb.DuckDBPyConnection,
    before: Policy,
    after: Policy,
    as_of: datetime,
    known_at: datetime | None = None,
) -> pl.DataFrame:
    """Return every user's all-time score under both policies, largest change first.

    Columns: user_id, score_before, score_after, change, rank_before, rank_after (1 is the highest score; equal scores
    share the better rank). Scores are floats here where either policy has decimals. `known_at` as in `scores()`.
    """
    frames = [_ranked(scores(source, policy, as_of, known_at), name) for name, policy in _named(before, after)]
    joined = frames[0].join(frames[1], on="user_id")
    change = (pl.col("score_after") - pl.col("score_before")).alias("change")
    columns = ["user_id", "score_before", "score_after", "change", "rank_before", "rank_after"]
    return joined.with_columns(change).select(columns).sort(pl.col("change").abs(), "user_id", descending=[True, False])


def _named(before: Policy, after: Policy) -> list[tuple[str, Policy]]:
    return [("before", before), ("after", after)]


def _ranked(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    score = pl.col("all_time_score")
    number = score if frame.schema["all_time_score"] == pl.Int64 else score.cast(pl.Float64)
    rank = score.rank("min", descending=True).cast(pl.Int64)
    return frame.select("user_id", number.alias(f"score_{name}"), rank.alias(f"rank_{name}"))
