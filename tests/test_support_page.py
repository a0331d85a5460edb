"""docs/support.md: each request has one command, and its output is the one that the command prints."""

import re
from pathlib import Path

import pytest

from tests.support_page import PAGE, page_with_outputs

_TEXT = PAGE.read_text(encoding="utf-8")
_ROW = re.compile(r"^\| \[(.+)\]\(#(.+)\) \| `(karmalake .+)` \|$", re.MULTILINE)
_LEAST = 15


def test_each_request_has_a_section_with_its_command() -> None:
    """The table has the headings in their order, and the words that begin each command."""
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", _TEXT, re.MULTILINE | re.DOTALL))
    rows = _ROW.findall(_TEXT)
    assert [request for request, *_ in rows] == [*sections][1:]
    assert len(rows) >= _LEAST
    for request, anchor, command in rows:
        assert anchor == re.sub(r"[^\w -]", "", request.lower()).replace(" ", "-")
        named = " ".join(word for word in re.split(r" [A-Z'<-]", command)[0].split())
        assert f"$ {named}" in sections[request], request
    assert "error KL-" not in _TEXT


@pytest.mark.slow
def test_the_outputs_are_those_of_the_commands(tmp_path: Path) -> None:
    """All commands run, in the order of the page; `python -m tests.support_page` updates it."""
    assert page_with_outputs(_TEXT, tmp_path) == _TEXT
