"""Escaping of untrusted text, such as ids, for terminals, log lines and Markdown; numbers with their nouns."""

import re

CONTROL_CHARS = (
    *range(0x20),
    *range(0x7F, 0xA0),
    0x61C,
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x2070),
    0xFEFF,
    *range(0xD800, 0xE000),
)
"""Code points that are escaped: the control characters of C0 and C1, line and paragraph separators, bidirectional
controls, the byte order mark, which is invisible, and surrogates, which cannot be encoded."""
_ESCAPES = {code: repr(chr(code))[1:-1] for code in CONTROL_CHARS}
_ESCAPES_BUT_NEWLINE = {code: text for code, text in _ESCAPES.items() if chr(code) != "\n"}


def escape_text(text: str) -> str:
    """Return a text as one line, with control characters as Python escapes."""
    return text.translate(_ESCAPES)


def escape_lines(text: str) -> str:
    """Return a text with control characters as Python escapes, except line feeds."""
    return text.translate(_ESCAPES_BUT_NEWLINE)


def markdown_code(text: str) -> str:
    """Return a text as a code span for a cell of a Markdown table: markup, links and images in it have no effect."""
    escaped = escape_text(text).replace("|", "\\|") or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", escaped)), default=0))
    return f"{fence} {escaped} {fence}"


def amount(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: 1 record, 2 records; `plural` is needed unless an s makes it, as of a verb."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
