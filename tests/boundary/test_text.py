"""Escaping of untrusted text for terminals, logs and Markdown."""

import hypothesis
import pytest
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipelines.boundary.text import CONTROL_CHARS, amount, escape_lines, escape_text, markdown_code
from tests.test_hostile import HOSTILE


@pytest.mark.slow
@hypothesis.given(st.text(st.characters(codec=None)))
def test_control_characters_are_escaped(text: str) -> None:
    """No control, bidirectional or invisible character remains in any text; all others are unchanged."""
    assert not set(map(ord, escape_text(text))) & set(CONTROL_CHARS)
    assert set(map(ord, escape_lines(text))) & set(CONTROL_CHARS) <= {ord("\n")}
    assert escape_text(text).encode() is not None
    if not set(map(ord, text)) & set(CONTROL_CHARS):
        assert escape_text(text) == text


@pytest.mark.parametrize(
    "text", [*HOSTILE, "", "|", "`", "``|`", "https://evil.example/x.png", "<img src=x>", "\\|", "a\\"]
)
def test_markdown_shows_it_as_code(text: str) -> None:
    """In a table cell it is one code span: no link, no image, no HTML, no additional cell."""
    table = f"| a | b |\n|---|---|\n| {markdown_code(text)} | 1 |"
    shown = MarkdownIt("gfm-like", {"linkify": False}).parse(table)
    cells = [token for token in shown if token.type == "inline"]
    assert len(cells) == 4
    kinds = {child.type for child in cells[2].children or () if child.content.strip()}
    assert kinds <= {"code_inline"}
    assert cells[3].content == "1"


def test_one_is_singular() -> None:
    """Nouns, and what agrees with them."""
    assert [amount(number, "event") for number in (0, 1, 2_000)] == ["0 events", "1 event", "2,000 events"]
    assert [amount(number, "row is", "rows are") for number in (1, 2)] == ["1 row is", "2 rows are"]
