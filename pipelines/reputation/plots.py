"""Charts of a warehouse, one call each: Altair charts, to be shown as they are or changed further.

Owns how rows become a chart. What a trend's chart shows is in the comment of its SQL (`trends/`); colors and the look
of a notebook are in `charts.py`.
"""

import re
from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from pipelines.contract.time_like import TimeLike
from pipelines.reputation.charts import BLUE, CATEGORIES, LONE_BAND, LONE_POINT, UTC, in_utc
from pipelines.reputation.query_errors import check_count
from pipelines.reputation.trends import Chart, find_trend

if TYPE_CHECKING:
    from pipelines.reputation.warehouse import Warehouse

AnyChart = alt.Chart | alt.LayerChart
_LINES: dict[str, dict[str, Any]] = {
    "line": {"color": BLUE},
    "step": {"color": BLUE, "interpolate": "step-after"},
}
_MARKS: dict[str, dict[str, Any]] = {
    "line": {"type": "line", "point": LONE_POINT, **_LINES["line"]},
    "step": {"type": "line", "point": LONE_POINT, **_LINES["step"]},
    "bar": {"type": "bar", "color": BLUE},
    "point": {"type": "point", "color": BLUE, "filled": True},
}
_Y: dict[str, dict[str, Any]] = {
    "line": {"scale": alt.Scale(zero=False)},
    "bar": {"sort": None},  # in the order of the rows
    "point": {"sort": None},
}
_COLORS = {
    False: alt.Scale(range=list(CATEGORIES)),
    True: alt.Scale(scheme=alt.SchemeParams("blues", extent=[0.3, 1])),  # days, from the first to the last
}
_SUBTITLE_CHARACTERS = 100
_EVERY = {"hour": "1h", "day": "1d", "week": "1w", "month": "1mo"}
"""The values of `$period` in the syntax of polars."""
_SUM = re.compile(r"sum\((\w+)\)")


class Plots:
    """The charts of a warehouse, as of `Warehouse.plot`. Each call runs its query and returns an Altair chart."""

    def __init__(self, warehouse: "Warehouse") -> None:
        self._warehouse = warehouse

    def trend(
        self, name: str = "daily", since: TimeLike | None = None, until: TimeLike | None = None, **parameters: Any
    ) -> AnyChart:
        """Return the chart of a trend; arguments and errors as of `Warehouse.trend()`."""
        trend = find_trend(name)
        rows = self._warehouse.trend(name, since, until, **parameters)
        every = _EVERY[str(trend.values(parameters).get("period", "day"))]
        return draw(rows, trend.chart, name.replace("_", " "), trend.meaning, every)

    def timeline(self, user_ids: str | Iterable[str]) -> AnyChart:
        """Return the running scores of some users, a line each, in points.

        Raises like `Warehouse.timeline()`.
        """
        rows = self._warehouse.timeline(user_ids)
        chart = Chart("step", x="event_time", y="score", color="user_id")
        return draw(rows, chart, "score over time", "Points so far after each event, as events count now")

    def change(self, since: TimeLike, until: TimeLike | None = None, top: int = 20) -> AnyChart:
        """Return the largest changes of scores between two moments, a bar each, in points; as `Warehouse.change()`.

        Raises UsageError also unless `top` is a whole number from 0 to 1,000,000,000.
        """
        check_count("top", top)
        rows = self._warehouse.change(since, until).head(top)
        chart = Chart("bar", x="change", y="user_id")
        return draw(rows, chart, "largest changes", f"Points gained or lost since {since}, as known now")


def draw(rows: pl.DataFrame, chart: Chart, title: str, meaning: str, every: str = "1d") -> AnyChart:
    """Return rows as a chart with a title, and its meaning below it.

    every: the time between two rows of a line over days.
    """
    is_ordered = rows.schema.get(chart.color) == pl.Date
    kept, notes = (_drawable(rows, chart), []) if is_ordered else _distinguishable(_drawable(rows, chart), chart)
    shown = in_utc(_with_gaps(kept, chart, every))
    kind = shown.schema[chart.x]
    axis: dict[str, Any] = {"axis": alt.Axis(tickMinStep=1)} if kind.is_integer() else {}
    times: dict[str, Any] = {"scale": UTC} if isinstance(kind, pl.Datetime) else {}
    base = alt.Chart(shown).encode(x=alt.X(chart.x, **axis, **times))
    # a title would lie over the names
    untitled: dict[str, Any] = {"title": None} if rows.schema.get(chart.y) == pl.String else {}
    y = alt.Y(chart.y, **_Y.get(chart.mark, {}), **untitled)
    color = alt.Color(f"{chart.color}:{'O' if is_ordered else 'N'}", scale=_COLORS[is_ordered])
    named: dict[str, Any] = {"color": color} if chart.color else {}
    named |= {"size": chart.size} if chart.size else {}
    drawn: AnyChart = base.mark_line().encode(y=y, **named)
    drawn.mark = alt.MarkDef(**_MARKS[chart.mark])
    if chart.low:
        band = alt.MarkDef(type="area", opacity=0.2, **LONE_BAND, **_LINES[chart.mark])
        edges = base.mark_area().encode(y=alt.Y(chart.low, **_Y.get(chart.mark, {}), title=chart.y), y2=chart.high)
        edges.mark = band
        drawn = alt.LayerChart(layer=[edges, drawn])
    absent = ["There are no rows."] if rows.is_empty() else []
    return drawn.properties(title=alt.Title(title, subtitle=[*wrap(meaning, _SUBTITLE_CHARACTERS), *notes, *absent]))


def _drawable(rows: pl.DataFrame, chart: Chart) -> pl.DataFrame:
    """Return rows with exact numbers as floats, and the column of the colors as text, null as what it means."""
    exact = rows.with_columns(pl.selectors.decimal().cast(pl.Float64))
    return exact.with_columns(pl.col(chart.color).cast(pl.String).fill_null(chart.null)) if chart.color else exact


def _distinguishable(rows: pl.DataFrame, chart: Chart) -> tuple[pl.DataFrame, list[str]]:
    """Return rows of no more series than there are colors, the largest, and a note if there are others.

    Bars of a sum have the others as one more series: without them they would be shorter.
    """
    if not chart.color or (found := rows[chart.color].n_unique()) <= len(CATEGORIES):
        return rows, []
    summed = _SUM.fullmatch(chart.y)
    value = summed[1] if summed else chart.y
    size = pl.col(value).abs().sum() if rows.schema[value].is_numeric() else pl.len()
    shown = len(CATEGORIES) - bool(summed)
    sizes = rows.group_by(chart.color).agg(size.alias("size")).sort("size", chart.color, descending=[True, False])
    is_shown = pl.col(chart.color).is_in(sizes[chart.color].head(shown).to_list())
    note = f"Of {found:,} values of {chart.color}, the {shown} with the largest sum of {value} have a color"
    if not summed:
        return rows.filter(is_shown), [f"{note}; the others are not drawn."]
    kept = pl.when(is_shown).then(pl.col(chart.color)).otherwise(pl.lit(f"{found - shown:,} others"))
    return rows.with_columns(kept.alias(chart.color)), [f"{note}; the others are one."]


def _with_gaps(rows: pl.DataFrame, chart: Chart, every: str) -> pl.DataFrame:
    """Add a row for each period without one, from the first of a series to the last of all.

    A line would be drawn across the gap. Counts are zero there; what has no value, such as an average, breaks the line.
    """
    if chart.mark != "line" or rows.is_empty() or rows.schema[chart.x] != pl.Date:
        return rows
    day, series = pl.col(chart.x), [chart.color] if chart.color else []
    periods = rows.select(pl.date_range(day.min(), day.max(), every)).with_columns(day)
    first = day.min().over(series).alias("first") if series else day.min().alias("first")
    begun = rows.select(*series, first).unique().join(periods, how="cross").filter(day >= pl.col("first"))
    filled = begun.drop("first").join(rows, on=[*series, chart.x], how="left")
    return filled.with_columns(pl.selectors.integer().fill_null(0)).sort(chart.x, *series)
