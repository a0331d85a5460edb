"""The charts of the dashboard: polars data frames in, Altair charts with titles out.

A title is text of the page, which wraps on a phone: in a chart it would be cut off, and leave the plot a narrow strip.
"""

from dataclasses import dataclass

import altair as alt
import polars as pl

from pipelines.boundary.text import amount
from pipelines.reputation.charts import BLUE, GREY, INK, LONE_BAND, LONE_POINT, ORANGE, UTC, in_utc

_HEIGHT = 200
_TIMELINE_HEIGHT = 140
_DAYS = alt.Axis(format={"day": "%b %d", "date": "%b %d"})  # Vega's own are "Sat 29", without the month


@dataclass(frozen=True, slots=True)
class TitledChart:
    """A chart as wide as its place on the page, and the sentence above it."""

    title: str
    chart: alt.Chart | alt.LayerChart


def activity(rows: pl.DataFrame) -> TitledChart:
    """Draw events and active users over time; `rows` as from `queries.activity`."""
    base = alt.Chart(in_utc(rows)).encode(x=_days("first_day"))
    events = base.mark_area(color=BLUE, opacity=0.35, **LONE_BAND).encode(
        y=alt.Y("events:Q", title="events (area), users (line)")
    )
    users = base.mark_line(color=INK, point=_point(INK)).encode(
        y="active_users:Q", tooltip=[_day("first_day"), "events:Q", "active_users:Q"]
    )
    last, median = rows["events"][-1], rows["events"].median()
    title = f"{amount(last, 'event')} in the latest complete period, {median:,.0f} in the median one"
    return _layered(title, events, users)


def rating(rows: pl.DataFrame) -> TitledChart:
    """Draw the daily average with its 95 % band and the seven-day mean; `rows` as from `queries.rating`."""
    base = alt.Chart(in_utc(rows)).encode(x=_days("day"))
    band = base.mark_area(color=GREY, opacity=0.3).encode(
        y=alt.Y("lower:Q", title="rating", scale=alt.Scale(zero=False)), y2="upper:Q"
    )
    daily = base.mark_circle(color=GREY, size=18).encode(y="average:Q", tooltip=[_day("day"), "average:Q", "ratings:Q"])
    mean = base.mark_line(color=BLUE, point=_point(BLUE)).encode(y="seven_day_mean:Q")
    means = rows["seven_day_mean"].drop_nulls()
    change = round(means[-1] - means[min(6, means.len() - 1)], 2) + 0  # no -0.0
    title = f"The seven-day mean rating changed by {change:+.2f} (dots: daily average; band: 95 %)"
    return _layered(title, band, daily, mean)


def distribution(rows: pl.DataFrame) -> TitledChart:
    """Draw the median, middle half and middle 80 % of points; `rows` as from `queries.distribution`."""
    base = alt.Chart(in_utc(rows)).encode(x=_days("first_day"))
    outer = base.mark_area(color=BLUE, opacity=0.25, **LONE_BAND).encode(y=alt.Y("p10:Q", title="points"), y2="p90:Q")
    inner = base.mark_area(color=BLUE, opacity=0.45, **LONE_BAND).encode(y="p25:Q", y2="p75:Q")
    median = base.mark_line(color=INK, point=_point(INK)).encode(y="median:Q")
    now = rows["median"][-1]
    title = f"Half of all users have {amount(round(now), 'point')} or more (bands: 50 % and 80 %)"
    return _layered(title, outer, inner, median)


def score(ends: pl.DataFrame, shown: pl.DataFrame) -> TitledChart:
    """Draw a user's score over time: blue as it was shown, grey by event time as known now.

    `ends` as from `queries.scores_over_time`, `shown` as from `queries.shown_scores`.
    """
    known = alt.Chart(in_utc(ends)).mark_line(
        color=GREY, interpolate="step-after", point=alt.OverlayMarkDef(color=GREY)
    )
    served = alt.Chart(in_utc(shown)).mark_line(color=BLUE, interpolate="step-after", point=True)
    score = alt.Y("score:Q", title="score")
    layers = (
        known.encode(x=_days("first_day"), y=score, tooltip=[_day("first_day"), "score:Q"]),
        served.encode(x=_days("moment"), y=score, tooltip=[_moment("moment"), "score:Q"]),
    )
    now = (shown if shown.height else ends)["score"][-1]
    return _layered(
        f"{now:,.6g} {'point' if now == 1 else 'points'} now (blue: as shown; grey: by event time, as known now)",
        *layers,
    )


def timeline(sums: pl.DataFrame) -> TitledChart:
    """Draw a user's events, one row per action_type, orange for lost points; `sums` as from `queries.timeline`."""
    drawn = (
        alt.Chart(in_utc(sums))
        .mark_circle(opacity=0.8)
        .encode(
            x=_days("first_day"),
            y=alt.Y("action_type:N", title=None),
            size=alt.Size("events:Q", legend=None),
            color=alt.condition("datum.earned < 0", alt.value(ORANGE), alt.value(BLUE)),
            tooltip=[_day("first_day"), "action_type:N", "events:Q", "earned:Q"],
        )
    )
    title = f"{amount(int(sums['events'].sum()), 'event')} (orange: points lost)"
    return TitledChart(title, drawn.properties(width="container", height=_TIMELINE_HEIGHT))


def _days(column: str) -> alt.X:
    return alt.X(f"{column}:T", title=None, axis=_DAYS, scale=UTC)


def _day(column: str) -> alt.Tooltip:
    return alt.Tooltip(f"utcyearmonthdate({column}):T", title=column, format="%Y-%m-%d")


def _moment(column: str) -> alt.Tooltip:
    return alt.Tooltip(f"utcyearmonthdatehoursminutes({column}):T", title=column, format="%Y-%m-%d %H:%M UTC")


def _point(color: str) -> alt.OverlayMarkDef:
    return alt.OverlayMarkDef(color=color, **LONE_POINT)


def _layered(title: str, *layers: alt.Chart) -> TitledChart:
    return TitledChart(title, alt.LayerChart(layer=list(layers)).properties(width="container", height=_HEIGHT))
