"""Guarantees as data: each has code that enforces it and tests that try to break it; no test names an unknown one."""

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from docs._site.reference import GUARANTEES, guarantees_page, trials
from tests.conftest import REPOSITORY

_IDS = ("once", "nothing-lost", "atomic", "fenced", "not-blocked", "replay-equals-live")
_IDS += ("incremental-equals-rebuild", "feed-equals-reputation", "explainable", "fresh", "isolated", "erasable")
_CITED = re.compile(r"\((`[a-z-]+`(?:, `[a-z-]+`)*)\)")
"""How docstrings cite guarantees: in brackets."""
_WORDS = {"nothing", "lost", "blocked", "live", "rebuild"}
"""Words of the ids of guarantees; a hyphenated name with one of them is a citation, or misspelled."""


@pytest.fixture(scope="module")
def guarantees() -> list[dict[str, Any]]:
    with (REPOSITORY / GUARANTEES).open("rb") as file:
        return tomllib.load(file)["guarantee"]


def faults(repository: Path, guarantees: Sequence[dict[str, Any]]) -> list[str]:
    """Return the inconsistencies between guarantees, code and tests of a repository."""
    ids, tried = {guarantee["id"] for guarantee in guarantees}, trials(repository)
    found = [
        f"{guarantee['id']}: {what}"
        for guarantee in guarantees
        for what, good in {
            "is neither safety nor liveness": guarantee["kind"] in {"safety", "liveness"},
            "claims nothing": guarantee["claim"],
            "does not say how": guarantee["how"],
            "is kept by no code": guarantee["enforced_by"],
            "is kept by code that is not there": all(
                (repository / each).is_file() for each in guarantee["enforced_by"]
            ),
            "is tried by no test": tried.get(guarantee["id"]),
        }.items()
        if not good
    ]
    found += [
        f"{guarantee['id']}: there is no {test}" for guarantee in guarantees for test in _absent(repository, guarantee)
    ]
    return found + [f"{place} names {name}" for place, name in _named(repository) if name not in ids]


def _absent(repository: Path, guarantee: dict[str, Any]) -> Iterator[str]:
    """Yield the tests that a guarantee names for past violations, and that do not exist."""
    for test in (test for case in guarantee.get("broken", []) for test in case["held_by"] or ["test at all"]):
        file, _, name = test.partition("::")
        if not (repository / file).is_file() or f"def {name}(" not in (repository / file).read_text(encoding="utf-8"):
            yield test


def _named(repository: Path) -> Iterator[tuple[str, str]]:
    """Yield each id that a docstring cites, including possibly misspelled ones."""
    for place, text in _docstrings(repository):
        cited = {name for names in _CITED.findall(text) for name in re.findall(r"`([a-z-]+)`", names)}
        hyphened = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", text))
        for name in cited | {name for name in hyphened if set(name.split("-")) & _WORDS}:
            yield place, name


def _docstrings(repository: Path) -> Iterator[tuple[str, str]]:
    for folder in ("pipelines", "tests", "assets"):
        for path in sorted((repository / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    yield str(path.relative_to(repository)), ast.get_docstring(node) or ""


def test_every_guarantee_is_listed_once(guarantees: list[dict[str, Any]]) -> None:
    """In the order of the design."""
    assert tuple(guarantee["id"] for guarantee in guarantees) == _IDS


@pytest.mark.slow
def test_every_guarantee_has_code_and_tests(guarantees: list[dict[str, Any]]) -> None:
    """And no docstring cites an unknown guarantee."""
    assert faults(REPOSITORY, guarantees) == []


@pytest.mark.parametrize(
    ("test", "change", "fault"),
    [
        ("It is kept (`kept`).", {}, None),
        ("It is kept.", {}, "kept: is tried by no test"),
        ("It is kept (`kept`, `kpet`).", {}, "tests/test_it.py names kpet"),
        ("It is kept (`kept`), `nothing-losst`.", {}, "tests/test_it.py names nothing-losst"),
        ("It is kept (`kept`).", {"enforced_by": ["pipelines/gone.py"]}, "kept: is kept by code that is not there"),
        ("It is kept (`kept`).", {"enforced_by": []}, "kept: is kept by no code"),
        ("It is kept (`kept`).", {"kind": "hope"}, "kept: is neither safety nor liveness"),
        ("It is kept (`kept`).", {"broken": [{"held_by": ["tests/test_it.py::test_it"]}]}, None),
        (
            "It is kept (`kept`).",
            {"broken": [{"held_by": ["tests/test_it.py::test_is"]}]},
            "kept: there is no tests/test_it.py::test_is",
        ),
        ("It is kept (`kept`).", {"broken": [{"held_by": []}]}, "kept: there is no test at all"),
    ],
)
def test_the_check_can_fail(tmp_path: Path, test: str, change: dict[str, Any], fault: str | None) -> None:
    """A guarantee without a test, a test with an unknown one, and a guarantee without code are detected."""
    for folder in ("pipelines", "tests", "assets"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pipelines" / "code.py").touch()
    (tmp_path / "tests" / "test_it.py").write_text(f'def test_it() -> None:\n    """{test}"""\n', encoding="utf-8")
    promise = {"id": "kept", "kind": "safety", "claim": "c", "how": "h", "enforced_by": ["pipelines/code.py"]}
    assert faults(tmp_path, [promise | change]) == ([fault] if fault else [])


@pytest.mark.slow
def test_the_page_matches_the_data() -> None:
    """`make docs` would change nothing."""
    assert (REPOSITORY / "docs/guarantees.md").read_text(encoding="utf-8") == guarantees_page(REPOSITORY)
