"""How charts look, in notebooks and on the dashboard: colours, and in notebooks a theme and still pictures.

Colours are told apart in print and by colour-blind readers (Okabe and Ito's, each of another lightness).
"""

from base64 import b64encode
from html import escape
from typing import Any

import altair as alt
from altair.utils.mimebundle import spec_to_mimebundle

INK, BLUE, ORANGE, GREY = "#222222", "#0072B2", "#D55E00", "#999999"
_PALE_BLUE, _AMBER = "#56B4E9", "#E69F00"
_FONT = "Liberation Sans, Arial, sans-serif"
"""The first is inside of what draws, so that every machine measures texts alike; the second is as wide."""
_NAME = "karmalake"


def draw_still() -> None:
    """Let altair show charts in this notebook as pictures, in karmalake's theme.

    Altair's own way is a script that the browser fetches from elsewhere: nothing is to be seen offline, in print or in
    a notebook that was committed. `alt.renderers.enable("default")` goes back to it.
    """
    alt.renderers.register(_NAME, _picture)
    alt.renderers.enable(_NAME)
    alt.theme.register(_NAME, enable=True)(_theme)


def _picture(spec: dict[str, Any], **_: Any) -> dict[str, str]:
    """Return a chart as what a notebook shows: SVG within an image, and its title where no image can be.

    SVG by itself JupyterLab hides until the notebook is trusted; an image it shows.
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
            # Where the reader has neither font, another one may be wider: room for it.
            "padding": {"left": 24, "right": 48, "top": 8, "bottom": 8},
            "aria": False,  # no label for each of a thousand points: the title says it
            "view": {"continuousWidth": 640, "continuousHeight": 220, "discreteWidth": 640, "stroke": None},
            "title": {"anchor": "start", "fontSize": 14, "color": INK, "offset": 10, "subtitleColor": INK},
            "axis": {"titleColor": INK, "labelColor": INK, "gridColor": "#e5e5e5", "titleFontWeight": "normal"},
            "axisTemporal": {"labelOverlap": "greedy", "labelSeparation": 14},
            "legend": {"titleColor": INK, "labelColor": INK, "titleFontWeight": "normal"},
            "range": {"category": [BLUE, ORANGE, INK, GREY, _PALE_BLUE, _AMBER]},
        }
    )
