"""The promises as data: each has code that keeps it and tests that try to break it, and no test names another."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.cli.reference import GUARANTEES, guarantees_page, trials
from tests.conftest import REPOSITORY

_IDS = ("once", "nothing-lost", "atomic", "fenced", "not-blocked", "replay-equals-live")
_IDS += ("incremental-equals-rebuild", "explainable", "fresh", "isolated", "erasable")
_NAMED = re.compile(r"`([a-z]+(?:-[a-z]+)+)`")


@pytest.fixture(scope="module")
def guarantees() -> list[dict[str, Any]]:
    with (REPOSITORY / GUARANTEES).open("rb") as file:
        return tomllib.load(file)["guarantee"]


def test_every_promise_is_there_once(guarantees: list[dict[str, Any]]) -> None:
    """In the order in which the design makes them."""
    assert tuple(guarantee["id"] for guarantee in guarantees) == _IDS


def test_every_promise_is_kept_by_code_and_tried_by_tests(guarantees: list[dict[str, Any]]) -> None:
    """Or says what is missing, and is tried by no test then."""
    tried = trials(REPOSITORY)
    for guarantee in guarantees:
        kept = not guarantee.get("missing")
        assert guarantee["kind"] in {"safety", "liveness"}
        assert guarantee["claim"]
        assert bool(guarantee["how"]) == bool(guarantee["enforced_by"]) == bool(tried.get(guarantee["id"])) == kept
        for path in guarantee["enforced_by"]:
            assert (REPOSITORY / path).is_file(), path


def test_no_docstring_names_a_promise_that_is_none() -> None:
    """A promise that is misspelt would be tried by nothing."""
    named: dict[str, list[str]] = defaultdict(list)
    for place, text in _docstrings():
        for name in _NAMED.findall(text):
            named[name].append(place)
    promises = {name for name in named if name in _IDS}
    assert {"nothing-lost", "not-blocked"} <= promises
    close = {name: places for name, places in named.items() if name not in _IDS and set(name.split("-")) & _WORDS}
    assert close == {}


_WORDS = {"lost", "blocked", "live", "rebuild"}


def _docstrings() -> Iterator[tuple[str, str]]:
    for folder in ("pipelines", "tests", "assets"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    yield str(path.relative_to(REPOSITORY)), ast.get_docstring(node) or ""


def test_the_page_is_what_the_data_say() -> None:
    """`make docs` would change nothing."""
    assert (REPOSITORY / "docs/guarantees.md").read_text(encoding="utf-8") == guarantees_page(REPOSITORY)
