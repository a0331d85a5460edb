"""The charts of the dashboard, drawn as images: what their axes and titles say."""

import re
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
import vl_convert

from pipelines.dashboard import charts

_FIRST = datetime(2026, 8, 29, tzinfo=UTC)


def _texts(drawn: charts.TitledChart) -> list[str]:
    """Return the texts of a chart, as wide as on a large screen."""
    wide = drawn.chart.properties(width=1_000)
    return re.findall(r"<text[^>]*>([^<]*)</text>", vl_convert.vegalite_to_svg(wide.to_json()))


def _days(days: int, **columns: float) -> pl.DataFrame:
    """Return a row for each of some days, with the same values."""
    first_days = [_FIRST + timedelta(days=day) for day in range(days)]
    return pl.DataFrame({"first_day": first_days}).with_columns(**columns)


def _first_row() -> list[charts.TitledChart]:
    """Return every chart over time, of one row."""
    spread = _days(1, p10=1, p25=2, median=3, p75=4, p90=5)
    rated = _days(1, average=4, lower=3, upper=5, ratings=9, seven_day_mean=4).rename({"first_day": "day"})
    return [charts.activity(_days(1, events=7, active_users=3)), charts.rating(rated), charts.distribution(spread)]


@pytest.mark.slow
def test_a_chart_of_one_row_shows_it() -> None:
    """A line and an area of one row are drawn without length: the one has a point, the other an edge."""
    for drawn in _first_row():
        svg = vl_convert.vegalite_to_svg(drawn.chart.properties(width=1_000).to_json())
        assert re.search(r"mark-symbol role-mark layer_\d_layer_1_marks|mark-symbol role-mark layer_\d_marks", svg)
        layers = drawn.chart.to_dict()["layer"]
        lines = [layer["mark"] for layer in layers if layer["mark"]["type"] == "line"]
        assert lines
        assert all(mark["point"] for mark in lines)


@pytest.mark.slow
def test_days_have_a_month() -> None:
    """A label of a day says its month, for any number of days; the first of a month may be its name alone."""
    for days in (5, 20, 100):
        labels = _texts(charts.activity(_days(days, events=7, active_users=3)))
        assert [text for text in labels if re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d\d", text)] == []
        assert [text for text in labels if re.fullmatch(r"(Aug|Sep|Oct|Nov) \d\d", text)] != []


def test_titles_compare_with_whole_periods() -> None:
    """The first period may be part of one, so the median is named; a change that rounds to zero has no minus."""
    events = _days(5, active_users=3).with_columns(events=pl.Series([1, 20, 30, 40, 50]))
    assert charts.activity(events).title == "50 events in the latest complete period, 30 in the median one"
    rated = _days(9, average=4, lower=3, upper=5, ratings=9).rename({"first_day": "day"})
    rating = charts.rating(rated.with_columns(seven_day_mean=4 - 0.0001 * pl.int_range(pl.len())))
    assert rating.title.startswith("The seven-day mean rating changed by +0.00 ")
