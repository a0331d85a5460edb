"""Tables of the dashboard: every value is rendered as plain text.

marimo's own table turns URLs into links or images and renders Markdown, but ids and action types are untrusted text
from producers.
"""

from datetime import datetime
from decimal import Decimal
from html import escape

import marimo as mo
import polars as pl

from pipelines.boundary.text import escape_text

_STYLE = (
    "<style>.karmalake {font-size: 0.875rem}"
    # a shadow at an edge that hides columns: the covers scroll with the table, the shadows stay
    ".karmalake-scroll {overflow: auto; max-height: 40rem; background:"
    " linear-gradient(to right, var(--background, white) 40%, transparent) left / 3rem 100% no-repeat local,"
    " linear-gradient(to left, var(--background, white) 40%, transparent) right / 3rem 100% no-repeat local,"
    " linear-gradient(to right, #8888, transparent) left / 1rem 100% no-repeat scroll,"
    " linear-gradient(to left, #8888, transparent) right / 1rem 100% no-repeat scroll}"
    ".karmalake th, .karmalake td {padding: 0.15rem 0.6rem; text-align: left; vertical-align: top}"
    ".karmalake th {position: sticky; top: 0; background: var(--background, white)}"
    ".karmalake bdi {display: inline-block; width: max-content; max-width: 24rem; white-space: pre-wrap;"
    " overflow-wrap: anywhere}"  # long texts wrap, short ones never do
    ".karmalake .number {text-align: right; font-variant-numeric: tabular-nums}</style>"
)
_MAX_DIGITS = 2
"""Maximum digits after the point of a number, unless it would be displayed as zero."""
_MAX_CHARACTERS = 300


def table(rows: pl.DataFrame) -> mo.Html:
    """Return an HTML table of all rows: numbers right-aligned, with equal digits in a column; null is an empty cell."""
    classes = ["number" if kind.is_numeric() else "text" for kind in rows.schema.dtypes()]
    head = "".join(f'<th class="{kind}">{text(name)}</th>' for name, kind in zip(rows.columns, classes, strict=True))
    columns = [_shown_values(column) for column in rows.iter_columns()]
    body = "".join(f"<tr>{_cells(row, classes)}</tr>" for row in zip(*columns, strict=True))
    return mo.Html(
        f'{_STYLE}<div class="karmalake-scroll"><table class="karmalake">'
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


def number(value: float | Decimal | None, digits: int = 0) -> str:
    """Return a number with separators and at least `digits` after the point, at most 2; an empty text for None.

    A number that this would display as zero has one significant digit instead, such as 0.004.
    """
    if value is None:
        return ""
    if value and not round(value, _MAX_DIGITS):
        return f"{value:.1g}"
    return f"{value + 0:,.{max(digits, _digits(value))}f}"  # + 0: without the sign of -0.0


def _digits(value: float | Decimal) -> int:
    """Return the digits after the point of a number rounded to `_MAX_DIGITS`."""
    return len(f"{value:.{_MAX_DIGITS}f}".rstrip("0").partition(".")[2])


def _cells(row: tuple[str, ...], classes: list[str]) -> str:
    return "".join(f'<td class="{kind}">{text(value)}</td>' for value, kind in zip(row, classes, strict=True))


def _shown_values(column: pl.Series) -> list[str]:
    if not column.dtype.is_float() and not column.dtype.is_decimal():
        return [_shown(value) for value in column]
    digits = max((_digits(value) for value in column.drop_nulls()), default=0)
    return [number(value, digits) for value in column]


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case _:
            return str(value)
