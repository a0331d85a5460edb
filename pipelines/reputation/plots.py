"""Charts of a warehouse, one call each: Altair charts, to be shown as they are or changed further.

Owns how rows become a chart. What a trend's chart shows is in the comment of its SQL (`trends/`); colors and the look
of a notebook are in `charts.py`.
"""

from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from pipelines.contract.time_like import TimeLike
from pipelines.reputation.charts import BLUE, LONE_BAND, LONE_POINT
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
_SUBTITLE_CHARACTERS = 100


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
        return draw(rows, trend.chart, name.replace("_", " "), trend.meaning)

    def timeline(self, user_ids: str | Iterable[str]) -> AnyChart:
        """Return the running scores of some users, a line each, in points.

        Raises like `Warehouse.timeline()`.
        """
        rows = self._warehouse.timeline(user_ids)
        chart = Chart("step", x="event_time", y="score", color="user_id")
        return draw(rows, chart, "score over time", "Points so far after each event, as events count now")

    def change(self, since: TimeLike, until: TimeLike | None = None, top: int = 20) -> AnyChart:
        """Return the largest changes of scores between two moments, a bar each, in points; as `Warehouse.change()`.

        Raises UsageError also unless `top` is a whole number, at least 0.
        """
        check_count("top", top)
        rows = self._warehouse.change(since, until).head(top)
        chart = Chart("bar", x="change", y="user_id")
        return draw(rows, chart, "largest changes", f"Points gained or lost since {since}, as known now")


def draw(rows: pl.DataFrame, chart: Chart, title: str, meaning: str) -> AnyChart:
    """Return rows as a chart with a title, and its meaning below it."""
    base = alt.Chart(_drawable(rows, chart)).encode(x=chart.x)
    # a title would lie over the names
    untitled: dict[str, Any] = {"title": None} if rows.schema.get(chart.y) == pl.String else {}
    y = alt.Y(chart.y, **_Y.get(chart.mark, {}), **untitled)
    named = {"color": f"{chart.color}:N"} if chart.color else {}
    named |= {"size": chart.size} if chart.size else {}
    drawn: AnyChart = base.mark_line().encode(y=y, **named)
    drawn.mark = alt.MarkDef(**_MARKS[chart.mark])
    if chart.low:
        band = alt.MarkDef(type="area", opacity=0.2, **LONE_BAND, **_LINES[chart.mark])
        edges = base.mark_area().encode(y=alt.Y(chart.low, **_Y.get(chart.mark, {}), title=chart.y), y2=chart.high)
        edges.mark = band
        drawn = alt.LayerChart(layer=[edges, drawn])
    absent = ["There are no rows."] if rows.is_empty() else []
    return drawn.properties(title=alt.Title(title, subtitle=[*wrap(meaning, _SUBTITLE_CHARACTERS), *absent]))


def _drawable(rows: pl.DataFrame, chart: Chart) -> pl.DataFrame:
    """Return rows with exact numbers as floats, and null in the column of the colors as what it means."""
    exact = rows.with_columns(pl.selectors.decimal().cast(pl.Float64))
    return exact.with_columns(pl.col(chart.color).cast(pl.String).fill_null(chart.null)) if chart.color else exact
