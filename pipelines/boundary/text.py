"""Texts of others, such as ids, shown so that they are only text: on a terminal, in a line of a log, in Markdown."""

import re

STEERING = (
    *range(0x20),
    *range(0x7F, 0xA0),
    0x61C,
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x2070),
    0xFEFF,
    *range(0xD800, 0xE000),
)
"""The control characters of C0 and C1, line and paragraph separators, what turns the direction, the byte order mark,
which is invisible, and surrogates, which no output can hold."""
_SHOWN_AS = {code: repr(chr(code))[1:-1] for code in STEERING}
_SHOWN_AS_BUT_LINES = {code: text for code, text in _SHOWN_AS.items() if chr(code) != "\n"}


def visible(text: str) -> str:
    """Return a text as one line that does nothing to a terminal: Python's escapes stand for what would."""
    return text.translate(_SHOWN_AS)


def visible_lines(text: str) -> str:
    """Return a text of several lines, with whatever is quoted in it made visible."""
    return text.translate(_SHOWN_AS_BUT_LINES)


def as_code(text: str) -> str:
    """Return a text as code in a cell of a Markdown table, where no markup, link or image in it counts."""
    shown = visible(text).replace("|", "\\|") or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}"
