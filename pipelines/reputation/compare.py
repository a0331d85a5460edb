"""Comparisons of all users: two policies over the same events, or two moments under one; nothing is published."""

from datetime import datetime

import duckdb
import polars as pl

from pipelines.errors import UsageError
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
    return _by_change(frames[0].join(frames[1], on="user_id"), pl.col("score_before"))


def change_between(
    source: Snapshot | duckdb.DuckDBPyConnection, policy: Policy, since: datetime, until: datetime
) -> pl.DataFrame:
    """Return every user's all-time score at two moments, as known now, largest change first.

    Columns as of `compare_policies`. Users without an event before `since` have no score and rank before it, and change
    from the policy's start: a user's `change` is the sum of that of `explain_change`. Raises UsageError unless since is
    before until.
    """
    if since >= until:
        raise UsageError(f"since {since:%Y-%m-%d %H:%M} is not before until {until:%Y-%m-%d %H:%M}")
    before = _ranked(scores(source, policy, since), "before")
    after = _ranked(scores(source, policy, until), "after")
    start = pl.lit(policy.at(since).rules.score.start).cast(after.schema["score_after"])
    is_new = ~pl.col("user_id").is_in(before["user_id"].implode())
    old = pl.when(is_new).then(start).otherwise(pl.col("score_before"))
    return _by_change(after.join(before, on="user_id", how="left"), old)


def _by_change(joined: pl.DataFrame, old: pl.Expr) -> pl.DataFrame:
    """Return the columns of a comparison, sorted by the change from the score `old`."""
    change = (pl.col("score_after") - old).alias("change")
    columns = ["user_id", "score_before", "score_after", "change", "rank_before", "rank_after"]
    order = pl.col("change").abs(), "user_id"
    return joined.with_columns(change).select(columns).sort(*order, descending=[True, False], nulls_last=True)


def _named(before: Policy, after: Policy) -> list[tuple[str, Policy]]:
    return [("before", before), ("after", after)]


def _ranked(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    score = pl.col("all_time_score")
    number = score if frame.schema["all_time_score"] == pl.Int64 else score.cast(pl.Float64)
    rank = score.rank("min", descending=True).cast(pl.Int64)
    return frame.select("user_id", number.alias(f"score_{name}"), rank.alias(f"rank_{name}"))
