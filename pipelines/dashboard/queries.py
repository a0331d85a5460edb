"""Queries of the dashboard: most return a polars data frame, ready to be drawn or listed."""

import re
from datetime import timedelta
from typing import Literal

import polars as pl

from pipelines.boundary.text import escape_text
from pipelines.reputation.warehouse import Warehouse

Period = Literal["day", "week"]
_LENGTHS: dict[Period, str] = {"day": "1d", "week": "1w"}
_RECENT_DAYS = 30
_WINDOW = re.compile(r"last_(\d+)_days_score")
_TOP = 10
_YEAR = timedelta(days=366)
_TOP_USERS = """
    SELECT
        rank() OVER (ORDER BY {view}_score DESC) AS rank, user_id, status,
        {view}_score AS score, {view}_events AS events
    FROM reputation
    WHERE {view}_score IS NOT NULL
    ORDER BY rank, user_id
    LIMIT $top
"""
_USER_RANK = """
    SELECT 1 + count(*) FILTER (WHERE all_time_score > (SELECT all_time_score FROM reputation WHERE user_id = $user_id))
        AS rank, count(*) AS users
    FROM reputation
"""
_DEAD_LETTERS = """
    SELECT
        reason, count(*) AS dead_letters, count(*) FILTER (WHERE fate = 'open') AS open,
        max(bus_time) AS latest, min(detail) AS example
    FROM dead_letters
    GROUP BY reason
    ORDER BY dead_letters DESC, reason
"""
_COMMITS = """
    SELECT version, committed, source, read, accepted, duplicates, conflicts, dead_letters
    FROM commits
    ORDER BY version DESC
    LIMIT $newest
"""
_CHANGES = """
    SELECT
        number,
        as_of AS published,
        CAST(before ->> 'all_time_score' AS DOUBLE) AS score_before,
        CAST(after ->> 'all_time_score' AS DOUBLE) AS score,
        coalesce(after ->> 'level', '') AS level,
        coalesce(after ->> 'status', 'not shown') AS status,
        array_to_string(list_transform(causes, lambda each: concat_ws(' ', each.cause, each.event_id)), ', ')
            || CASE WHEN more_causes > 0 THEN concat(', ', more_causes, ' more') ELSE '' END AS causes,
        policy
    FROM score_changes
    WHERE user_id IN (SELECT unnest($user_ids))
    ORDER BY number DESC
    LIMIT $newest
"""


def activity(warehouse: Warehouse, period: Period) -> pl.DataFrame:
    """Return active users and events by `first_day`, over all actions, for each period that as_of has passed.

    The first one has the first event; one without events has a row of zeros.
    """
    length = _LENGTHS[period]
    unfinished = pl.Series([warehouse.info.as_of.date()]).dt.truncate(length).item()
    rows = warehouse.trend("activity", until=unfinished, period=period).filter(pl.col("action_type").is_null())
    if rows.is_empty():
        return rows
    periods = pl.date_range(rows["first_day"][0], unfinished, length, closed="left", eager=True)
    counts = pl.col("active_users", "events", "counted").fill_null(0)
    return periods.alias("first_day").to_frame().join(rows, on="first_day", how="left").with_columns(counts)


def rating(warehouse: Warehouse) -> pl.DataFrame:
    """Return the average rating of each complete day, with its confidence band and the seven-day mean."""
    return warehouse.trend("rating", until=warehouse.info.as_of.date())


def distribution(warehouse: Warehouse) -> pl.DataFrame:
    """Return percentiles of the points of all users, by week."""
    return warehouse.trend("distribution", period="week")


def shown_views(warehouse: Warehouse) -> tuple[str, ...]:
    """Return the displayed views: all time, and the window of the policy nearest to 30 days."""
    named = (_WINDOW.fullmatch(column) for column in warehouse.relation("FROM reputation").columns)
    recent = sorted((int(found[1]) for found in named if found), key=lambda days: abs(days - _RECENT_DAYS))
    return ("all_time", *(f"last_{days}_days" for days in recent[:1]))


def leaders(warehouse: Warehouse, view: str) -> pl.DataFrame:
    """Return the users with the highest scores of a view, equal scores sharing the better rank.

    `view` is one of `shown_views`, since it becomes part of a column name.
    """
    return warehouse.sql(_TOP_USERS.format(view=view), {"top": _TOP})


def top_user(warehouse: Warehouse) -> str:
    """Return the user with the highest all-time score; an empty string if there is none."""
    rows = leaders(warehouse, "all_time")
    return rows["user_id"][0] if rows.height else ""


def user_rank(warehouse: Warehouse, user_id: str) -> tuple[int, int]:
    """Return a user's rank by all-time score, and the number of users."""
    rank, users = warehouse.sql(_USER_RANK, {"user_id": user_id}).row(0)
    return rank, users


def event_history(warehouse: Warehouse, user_id: str) -> pl.DataFrame:
    """Return the contribution of each event of a user, oldest first, with numbers as Float64.

    Columns as from `Warehouse.explain`; rows without an event, such as bounds, are left out. Where a rating does not
    count, such as a retracted one, `rating` is what the event says. Raises KarmalakeError for an unknown user.
    """
    rows = warehouse.explain(user_id).filter(pl.col("event_id").is_not_null())
    numbers = rows.with_columns(pl.col("points", "rating", "earned", "score").cast(pl.Float64))
    given = warehouse.ratings_given(user_id).rename({"rating": "given"})
    said = numbers.join(given, on="event_id", how="left", maintain_order="left")
    return said.with_columns(pl.coalesce("rating", "given").alias("rating")).drop("given")


def scores_over_time(history: pl.DataFrame) -> pl.DataFrame:
    """Return a user's score at the end of each `first_day` (a day, or the Monday of a week) with an event."""
    return _dated(history).group_by("first_day", maintain_order=True).agg(pl.col("score").last())


def shown_scores(warehouse: Warehouse, user_id: str) -> pl.DataFrame:
    """Return the score that was shown of a user at each `moment` at which it may have changed, oldest first."""
    return warehouse.shown_scores(user_id).drop_nulls()


def changes(warehouse: Warehouse, user_id: str, newest: int) -> pl.DataFrame:
    """Return the newest changes of a user in the feed, newest first; none without the feed."""
    return warehouse.sql(_CHANGES, {"user_ids": warehouse.user_ids(user_id), "newest": newest})


def timeline(history: pl.DataFrame) -> pl.DataFrame:
    """Return the number of `events` and the points `earned`, by `first_day` and escaped action_type."""
    sums = pl.col("event_id").n_unique().alias("events"), pl.col("earned").sum()
    named = pl.col("action_type").map_elements(escape_text, pl.String)
    return _dated(history).group_by("first_day", named, maintain_order=True).agg(*sums)


def _dated(history: pl.DataFrame) -> pl.DataFrame:
    """Add `first_day`: the day of each event, or its week if the history is longer than a year."""
    days = pl.col("event_time").dt.date()
    long = history.select((days.max() - days.min()) > _YEAR).item()
    return history.with_columns(first_day=days.dt.truncate("1w" if long else "1d"))


def dead_letters(warehouse: Warehouse) -> pl.DataFrame:
    """Return the number of rejected records per reason, most frequent first, with the detail of one example."""
    return warehouse.sql(_DEAD_LETTERS)


def commits(warehouse: Warehouse, newest: int = 10) -> pl.DataFrame:
    """Return the newest commits that the warehouse reflects, newest first."""
    return warehouse.sql(_COMMITS, {"newest": newest})
