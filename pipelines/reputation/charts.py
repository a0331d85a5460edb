"""The look of charts in notebooks and on the dashboard: colours, and for notebooks a theme and static images.

Colours are distinct in print and for colour-blind readers (Okabe and Ito's palette, with different lightness). Times
are drawn in UTC wherever the reader is, since days of the warehouse are UTC days.
"""

from base64 import b64encode
from html import escape
from typing import Any

import altair as alt
import polars as pl
from altair.utils.mimebundle import spec_to_mimebundle

INK, BLUE, ORANGE, GREY = "#222222", "#0072B2", "#D55E00", "#999999"
_PALE_BLUE, _AMBER, _GREEN, _PINK = "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
CATEGORIES = (BLUE, ORANGE, INK, GREY, _PALE_BLUE, _AMBER, _GREEN, _PINK)
"""Colours of series, which Vega would repeat from the first on for more: draw no more than these."""
UTC = alt.Scale(type="utc")
"""The scale of times; Vega's other one is in the time zone of the browser or the machine."""
LONE_POINT: dict[str, Any] = {"size": 16}
"""The points of a line, hardly wider than it: a value without neighbours would be invisible."""
LONE_BAND: dict[str, Any] = {"stroke": BLUE, "strokeWidth": 1}
"""The edge of an area, which for a single value is a line between its bounds: it would be invisible."""
_FONT = "Liberation Sans, Arial, sans-serif"
"""The renderer contains the first, so that text has the same width on every machine; the second is as wide."""
_NAME = "karmalake"


def in_utc(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with each day as the moment at which it begins in UTC: Vega takes a day for one of its own zone."""
    return rows.with_columns(pl.selectors.date().cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))


def draw_still() -> None:
    """Make altair show charts in this notebook as static images, in karmalake's theme.

    Altair's default renderer loads a script from the web: such a chart is empty offline, in print and in a committed
    notebook. `alt.renderers.enable("default")` restores it.
    """
    alt.renderers.register(_NAME, _picture)
    alt.renderers.enable(_NAME)
    alt.data_transformers.disable_max_rows()  # an image does not contain its rows
    alt.theme.register(_NAME, enable=True)(_theme)


def _picture(spec: dict[str, Any], **_: Any) -> dict[str, str]:
    """Return a chart as a notebook output: an image with the SVG, and the title as plain text.

    JupyterLab hides bare SVG until the notebook is trusted, but shows it in an image.
    """
    drawn: Any = spec_to_mimebundle(spec, format="svg", mode="vega-lite", vegalite_version=alt.SCHEMA_VERSION[1:])
    title = spec.get("title", "a chart")
    text = title["text"] if isinstance(title, dict) else title
    data = b64encode(drawn["image/svg+xml"].encode()).decode()
    return {
        "text/html": f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}">',
        "text/plain": text,
    }


def _theme() -> alt.theme.ThemeConfig:
    return alt.theme.ThemeConfig(
        config={
            "font": _FONT,
            "background": "white",
            # Room for a wider font, on machines that have neither.
            "padding": {"left": 24, "right": 48, "top": 8, "bottom": 8},
            "aria": False,  # no label on each of a thousand points: the title is enough
            "view": {"continuousWidth": 640, "continuousHeight": 220, "discreteWidth": 640, "stroke": None},
            "title": {"anchor": "start", "fontSize": 14, "color": INK, "offset": 10, "subtitleColor": INK},
            "axis": {"titleColor": INK, "labelColor": INK, "gridColor": "#e5e5e5", "titleFontWeight": "normal"},
            "axisTemporal": {"labelOverlap": "greedy", "labelSeparation": 14},
            "legend": {"titleColor": INK, "labelColor": INK, "titleFontWeight": "normal"},
            "range": {"category": list(CATEGORIES)},
        }
    )
