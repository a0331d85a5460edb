"""Daily summary: the trends with a row per UTC day, joined into one row per day."""

from datetime import date, timedelta

import polars as pl

from pipelines.reputation.warehouse import Warehouse

_ACTIVITY = ("events", "counted", "active_users")
_RATING = {
    "ratings": "ratings",
    "average": "rating_average",
    "lower": "rating_lower",
    "upper": "rating_upper",
    "seven_day_mean": "rating_seven_day_mean",
}
_SPREAD = {"p10": "points_p10", "median": "points_median", "p90": "points_p90"}
_STATUS = ("suspended", "reinstated", "currently_suspended")


def by_day(warehouse: Warehouse, first: date, last: date) -> pl.DataFrame:
    """Return one row for each day of [first, last] with events, by day; null where a trend has no row for the day.

    Columns: day; events, counted and active users; number of ratings, their average with its band and seven-day mean;
    percentiles of all users' points so far; users suspended, reinstated and still suspended.
    """
    between = {"since": first, "until": last + timedelta(days=1)}
    activity = warehouse.trend("activity", **between).filter(pl.col("action_type").is_null())
    days = activity.select(pl.col("first_day").alias("day"), *_ACTIVITY)
    rating = warehouse.trend("rating", **between).select("day", *(pl.col(of).alias(to) for of, to in _RATING.items()))
    spread = warehouse.trend("distribution", period="day", **between).select(
        pl.col("first_day").alias("day"), *(pl.col(of).alias(to) for of, to in _SPREAD.items())
    )
    status = warehouse.trend("suspensions", **between).select("day", *_STATUS)
    for other in (rating, spread, status):
        days = days.join(other, on="day", how="left")
    return days.sort("day")
