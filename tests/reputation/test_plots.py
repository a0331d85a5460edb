"""Charts of one call: every trend has one, they are Altair objects, and they are drawn without network."""

import os
import re
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest
import vl_convert

from pipelines.errors import ConfigurationError, KarmalakeError, UsageError
from pipelines.reputation.charts import CATEGORIES
from pipelines.reputation.derive import derive
from pipelines.reputation.plots import AnyChart, draw
from pipelines.reputation.policy_file import load_policy, parse_policy
from pipelines.reputation.trends import Chart, trends
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.commands import run
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

EVENTS = [
    Event(f"{user}-{days}", user, "DriverRated", NOW - days * DAY, {"rating": "5", "rater_id": "rider"})
    for user in ("ann", "bob")
    for days in (40, 30, 20, 2)
]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("plots")
    derive(snapshot_of(folder / "lake", EVENTS), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    with open_warehouse(folder) as opened:
        yield opened


@pytest.mark.parametrize("name", trends())
def test_every_trend_has_a_chart(warehouse: Warehouse, name: str) -> None:
    """Its channels are columns of the trend, also where there are no rows, and the title names the trend."""
    chart = warehouse.plot.trend(name)
    columns = warehouse.trend(name).columns
    assert isinstance(chart, alt.Chart | alt.LayerChart)
    described = chart.to_dict()  # Altair checks it against the schema of Vega-Lite
    assert described["title"]["text"] == name.replace("_", " ")
    assert {field for field in _fields(described) if field not in columns} == set()
    assert "" not in _fields(described)


@pytest.mark.slow
@pytest.mark.parametrize("name", trends())
def test_every_chart_names_its_axes(warehouse: Warehouse, name: str) -> None:
    """Both, also where a band is drawn below a line; an axis with a name at each place has no title."""
    chart = trends()[name].chart
    texts = _texts(warehouse.plot.trend(name))
    rows = warehouse.trend(name)
    for column in (chart.x, chart.y):
        plain = column.removesuffix(")").rpartition("(")[2]
        if rows.schema[plain] != pl.String:
            assert any(text.casefold().endswith(plain) for text in texts), (column, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, trend in trends().items() if trend.chart.mark in ("line", "step")])
def test_a_line_of_one_value_is_visible(warehouse: Warehouse, name: str) -> None:
    """A line of one value has no length: it is a point. Without rows a sentence says so."""
    rows = warehouse.trend(name).head(1)
    for shown in (rows, rows.clear()):
        drawn = draw(shown, trends()[name].chart, name, "What it means.")
        assert ("There are no rows." in _svg(drawn)) == shown.is_empty()
        points = re.search(r'<g class="mark-symbol role-mark[^>]*[^/]>', _svg(drawn))  # without points it ends in />
        assert (points is None) == shown.is_empty()


def test_the_band_of_a_rating_is_around_its_line() -> None:
    """The band is that of the daily average, not of the mean of seven days."""
    chart = trends()["rating"].chart
    assert (chart.y, chart.low, chart.high) == ("average", "lower", "upper")


def _svg(chart: AnyChart) -> str:
    return vl_convert.vegalite_to_svg(chart.to_json())


def _texts(chart: AnyChart) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", _svg(chart))


def _fields(part: Any) -> list[str]:
    """Return the columns that a chart names."""
    if isinstance(part, list):
        return [field for item in part for field in _fields(item)]
    if not isinstance(part, dict):
        return []
    own = [part["field"]] if isinstance(part.get("field"), str) else []
    return own + [field for name, item in part.items() if name != "datasets" for field in _fields(item)]


@pytest.mark.parametrize("every", ["1d", "1w", "1mo"])
def test_a_period_without_rows_is_a_gap(every: str) -> None:
    """A count is zero there, from the first row of a series to the last of all; an average has no value."""
    days = pl.date_range(date(2024, 1, 1), date(2024, 12, 1), every, eager=True)
    rows = pl.DataFrame({"day": [days[0], days[4], days[2]], "of": ["a", "a", None], "n": 7, "mean": 0.5})
    chart = Chart("line", "day", "n", "of", "all")
    shown = [(row["of"], row["day"][:10], row["n"], row["mean"]) for row in _rows(draw(rows, chart, "t", "m", every))]
    present = {("a", str(days[0])), ("a", str(days[4])), ("all", str(days[2]))}
    places = [("a", str(day)) for day in days[:5]] + [("all", str(day)) for day in days[2:5]]
    filled = [(*place, *((7, 0.5) if place in present else (0, None))) for place in places]
    assert sorted(shown) == filled


def test_colors_do_not_repeat() -> None:
    """Of more series than colors, the largest are drawn and a note says so; bars have the others as one series."""
    sizes = {f"type-{number:02d}": number for number in range(1, 21)}
    rows = pl.DataFrame({"day": date(2024, 1, 1), "of": sizes.keys(), "events": sizes.values()})
    lines = draw(rows, Chart("line", "day", "events", "of"), "title", "Meaning.")
    assert {row["of"] for row in _rows(lines)} == {f"type-{number}" for number in range(13, 21)}
    said = "Of 20 values of of, the {} with the largest sum of events have a color; the others are "
    assert lines.to_dict()["title"]["subtitle"] == ["Meaning.", said.format(8) + "not drawn."]
    bars = draw(rows, Chart("bar", "day", "sum(events)", "of"), "title", "Meaning.")
    assert sum(row["events"] for row in _rows(bars)) == sum(sizes.values())
    assert {row["of"] for row in _rows(bars)} == {"13 others", *(f"type-{number}" for number in range(14, 21))}
    assert bars.to_dict()["title"]["subtitle"] == ["Meaning.", said.format(7) + "one."]
    assert len({*CATEGORIES}) == 8
    for chart in (lines, bars):
        assert chart.to_dict()["encoding"]["color"]["scale"]["range"] == [*CATEGORIES]
    many = draw(rows.head(8), Chart("line", "day", "events", "of"), "title", "Meaning.")
    assert many.to_dict()["title"]["subtitle"] == ["Meaning."]


def test_colors_of_cohorts_are_in_order() -> None:
    """Any number of days as series: their colors go from pale to dark."""
    days = pl.date_range(date(2024, 1, 1), date(2024, 12, 1), "1w", eager=True)
    rows = pl.DataFrame({"cohort": days, "age_weeks": 1, "average_points": 2.0})
    chart = draw(rows, trends()["cohorts"].chart, "title", "Meaning.")
    assert len(_rows(chart)) == days.len()
    assert chart.to_dict()["encoding"]["color"]["type"] == "ordinal"


IN_ZONE = """
import time
time.tzset()  # the process is forked from one of another zone
from datetime import UTC, date, datetime, timedelta
import polars as pl, vl_convert
from pipelines.dashboard import charts
from pipelines.reputation.plots import draw
from pipelines.reputation.trends import trends
days = [date(2024, 2, 28) + timedelta(days=number) for number in range(4)]
moments = [datetime(2024, 2, 28, 23, 50, tzinfo=UTC) + timedelta(hours=number) for number in range(4)]
rows = pl.DataFrame({"day": days, "first_day": days, "starts_at": moments, "moment": moments, "events": 1})
ones = ("active_users", "score", "earned", "average", "lower", "upper", "ratings", "seven_day_mean")
rows = rows.with_columns(*(pl.lit(1.5).alias(name) for name in (*ones, "p10", "p25", "median", "p75", "p90")))
rows = rows.with_columns(action_type=pl.lit("a"), user_id=pl.lit("u"))
shown = [draw(rows, trends()[name].chart, "t", "m") for name in ("daily", "rater_bursts", "rating")]
for drawn in (charts.activity(rows), charts.rating(rows), charts.distribution(rows), charts.timeline(rows)):
    shown.append(drawn.chart.properties(width=900))
shown.append(charts.score(rows, rows).chart.properties(width=900))
print(*(vl_convert.vegalite_to_svg(chart.to_json()) for chart in shown), sep="\\n")
"""


@pytest.mark.slow
def test_charts_are_the_same_in_every_time_zone() -> None:
    """Days are UTC days, and so is the axis of moments, wherever the reader or the machine is."""
    zones = ("UTC", "Pacific/Kiritimati", "America/Los_Angeles")
    drawn = [run(["-c", IN_ZONE], env=os.environ | {"TZ": zone}, check=True).stdout for zone in zones]
    assert "Feb 29" in drawn[0]
    assert [image == drawn[0] for image in drawn] == [True] * len(zones)


def test_a_chart_has_the_rows_of_its_call(warehouse: Warehouse) -> None:
    """Arguments restrict it, and it can be changed like any chart of Altair."""
    since = AS_OF - timedelta(days=25)
    assert len(_rows(warehouse.plot.trend("rating", since=since))) == warehouse.trend("rating", since=since).height
    chart = warehouse.plot.trend("activity", period="week", action_type="DriverRated").properties(width=99)
    assert {row["action_type"] for row in _rows(chart)} == {"DriverRated"}
    assert chart.to_dict()["width"] == 99
    with pytest.raises(UsageError, match="no parameter month"):
        warehouse.plot.trend("rating", month=3)


LEVELS = """
name = "levels"
version = "1"
actions.Paid = { points = 1 }
levels.bronze = { at = 3 }
scopes.city = { from = "city" }
"""


def test_null_has_the_meaning_that_the_trend_declares(tmp_path: Path) -> None:
    """Users below the first level are not all users; a trend whose colors may be null has to say what null means."""
    events = [Event(f"{user}-{n}", user, "Paid", NOW - n * DAY, {"city": "lima"}) for user in "ab" for n in range(1, 6)]
    events += [Event("c-1", "c", "Paid", NOW - DAY), Event("c-2", "c", "Unheard", NOW - DAY)]
    derive(snapshot_of(tmp_path / "lake", events), parse_policy(LEVELS), AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as opened:
        for name, trend in trends().items():
            if trend.chart.color:
                rows = opened.trend(name)
                assert bool(rows[trend.chart.color].null_count()) == bool(trend.chart.null), name
        assert {row["level"] for row in _rows(opened.plot.trend("levels"))} == {"no level", "bronze"}
        assert {row["action_type"] for row in _rows(opened.plot.trend("activity"))} == {"all", "Paid", "Unheard"}


def test_charts_of_users(warehouse: Warehouse) -> None:
    """A line for each user, and a bar for each of the largest changes."""
    assert {row["user_id"] for row in _rows(warehouse.plot.timeline(["ann", "bob"]))} == {"ann", "bob"}
    assert [row["change"] for row in _rows(warehouse.plot.change(AS_OF - timedelta(days=3), top=1))] == [10]


def test_no_title_lies_over_the_names_of_users(warehouse: Warehouse) -> None:
    """An axis with a name at each place has no title; one with numbers keeps it."""
    changes = warehouse.plot.change(AS_OF - timedelta(days=3))
    for chart in (warehouse.plot.trend("movers"), warehouse.plot.trend("drift"), changes):
        assert chart.to_dict()["encoding"]["y"]["title"] is None
    assert "title" not in warehouse.plot.trend("reasons").to_dict()["encoding"]["y"]


def test_a_chart_of_unknown_users_is_refused(warehouse: Warehouse) -> None:
    """The message names one that the chart would leave out, also among known ones."""
    with pytest.raises(KarmalakeError, match=r"^no events of user 'zed': check the spelling$"):
        warehouse.plot.timeline("zed")
    with pytest.raises(KarmalakeError, match=r"^no events of user 'dan': "):
        warehouse.plot.timeline(["ann", "dan", "cid"])


@pytest.mark.slow
def test_a_chart_is_drawn_here(warehouse: Warehouse, tmp_path: Any) -> None:
    """As an image, by the installed packages."""
    warehouse.plot.trend("survival").save(tmp_path / "chart.svg")
    drawn = (tmp_path / "chart.svg").read_text(encoding="utf-8")
    assert "survival" in drawn
    assert "https://" not in drawn


def test_without_the_packages_of_notebooks(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence names the extra."""
    monkeypatch.setitem(sys.modules, "altair", None)
    monkeypatch.delitem(sys.modules, "pipelines.reputation.plots")
    with pytest.raises(ConfigurationError, match=r"a chart needs packages .*'karmalake\[notebooks\]"):
        _ = warehouse.plot


def _rows(chart: AnyChart) -> list[dict[str, Any]]:
    return next(iter(chart.to_dict()["datasets"].values()))
