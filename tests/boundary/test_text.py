"""Texts of others as text: on a terminal, in a log, in Markdown."""

import hypothesis
import pytest
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipelines.boundary.text import STEERING, as_code, visible, visible_lines
from tests.test_hostile import HOSTILE


@hypothesis.given(st.text(st.characters(codec=None)))
def test_nothing_steers(text: str) -> None:
    """Whatever a text holds, no character is left that steers, turns or hides; the others stay as they are."""
    assert not set(map(ord, visible(text))) & set(STEERING)
    assert set(map(ord, visible_lines(text))) & set(STEERING) <= {ord("\n")}
    assert visible(text).encode() is not None
    if not set(map(ord, text)) & set(STEERING):
        assert visible(text) == text


@pytest.mark.parametrize(
    "text", [*HOSTILE, "", "|", "`", "``|`", "https://evil.example/x.png", "<img src=x>", "\\|", "a\\"]
)
def test_markdown_shows_it_as_code(text: str) -> None:
    """In a cell of a table, beside another one: one code span, no link, no image, no HTML, no cell more."""
    table = f"| a | b |\n|---|---|\n| {as_code(text)} | 1 |"
    shown = MarkdownIt("gfm-like", {"linkify": False}).parse(table)
    cells = [token for token in shown if token.type == "inline"]
    assert len(cells) == 4
    kinds = {child.type for child in cells[2].children or () if child.content.strip()}
    assert kinds <= {"code_inline"}
    assert cells[3].content == "1"
