"""Tables of the dashboard: every value is rendered as plain text.

marimo's own table turns URLs into links or images and renders Markdown, but ids and action types are untrusted text
from producers.
"""

from datetime import datetime
from html import escape

import marimo as mo
import polars as pl

from pipelines.boundary.text import escape_text

_STYLE = (
    "<style>.karmalake th, .karmalake td {padding: 0.15rem 0.75rem; white-space: pre; text-align: left}"
    ".karmalake .number {text-align: right}</style>"
)
_MAX_CHARACTERS = 300


def table(rows: pl.DataFrame) -> mo.Html:
    """Return an HTML table of all rows, with numbers right-aligned."""
    classes = ["number" if kind.is_numeric() else "text" for kind in rows.schema.dtypes()]
    head = "".join(f'<th class="{kind}">{text(name)}</th>' for name, kind in zip(rows.columns, classes, strict=True))
    body = "".join(f"<tr>{_cells(row, classes)}</tr>" for row in rows.rows())
    return mo.Html(
        f'{_STYLE}<div style="overflow: auto; max-height: 40rem"><table class="karmalake">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def text(value: str) -> str:
    """Return HTML that shows a text literally, isolated from the text direction around it."""
    shown = escape_text(value)
    cut = shown if len(shown) <= _MAX_CHARACTERS else f"{shown[:_MAX_CHARACTERS]}\u2026"
    return f"<bdi>{escape(cut)}</bdi>"


def paragraph(value: str) -> mo.Html:
    """Return a paragraph of text that may quote untrusted input."""
    return mo.Html(f"<p>{text(value)}</p>")


def _cells(row: tuple[object, ...], classes: list[str]) -> str:
    return "".join(f'<td class="{kind}">{text(_shown(value))}</td>' for value, kind in zip(row, classes, strict=True))


def _shown(value: object) -> str:
    match value:
        case None:
            return "-"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.2f}"
        case _:
            return str(value)
