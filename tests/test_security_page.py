"""SECURITY.md lists what each actor can and cannot do; each line names an existing test."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_ACTORS = {
    "Topic writer",
    "Schema registry",
    "Webhook receiver",
    "Impostor at the address of Redis, a broker or an object store",
    "Author of a file of history",
    "Web page in an operator's browser",
    "Dashboard reader",
    "Other local user",
    "Operator",
}
_COLUMNS = "| can | cannot | shown by |"
_TEST = re.compile(r"`(test_\w+)`")


def lines(page: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the cells of every table line: actor, can, cannot, tests."""
    for section in page.split("\n### ")[1:]:
        actor, _, rest = section.partition("\n")
        table = rest.partition(_COLUMNS)[2].partition("\n\n")[0]
        for line in table.strip().splitlines()[1:]:
            can, cannot, shown = (cell.strip() for cell in line.strip("|").split("|"))
            yield actor, can, cannot, shown


def faults(page: str, known: set[str]) -> list[str]:
    """Return the faults of the tables: an actor without a line, an empty cell, a line without an existing test."""
    found = list(lines(page))
    missing = [f"{actor}: no line" for actor in sorted(_ACTORS - {actor for actor, *_ in found})]
    return missing + [fault for line in found for fault in _faults_of(line, known)]


def _faults_of(line: tuple[str, str, str, str], known: set[str]) -> Iterator[str]:
    actor, can, cannot, shown = line
    if not can or not cannot:
        yield f"{actor}: an empty cell beside {shown}"
    tests = _TEST.findall(shown)
    if not tests:
        yield f"{actor}: {can}: no test"
    yield from (f"{actor}: there is no {test}" for test in tests if test not in known)


def _tests(folder: Path) -> set[str]:
    files = folder.rglob("test_*.py")
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))}


def test_every_line_names_an_existing_test() -> None:
    """Every claim about an actor is backed by a test."""
    page = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    assert faults(page, _tests(REPOSITORY / "tests")) == []
    assert len(list(lines(page))) > 40


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ("| a | b | `test_it` |", []),
        ("| a | b | `test_gone` |", ["Operator: there is no test_gone"]),
        ("| a | b | later |", ["Operator: a: no test"]),
        ("| a | | `test_it` |", ["Operator: an empty cell beside `test_it`"]),
    ],
)
def test_the_check_can_fail(cells: str, fault: list[str]) -> None:
    """A line without a test, with an unknown test or with an empty cell is detected, and an actor without a line."""
    page = f"# Page\n\n### Operator\n\n{_COLUMNS}\n|---|---|---|\n{cells}\n\nMore.\n"
    others = [f"{actor}: no line" for actor in sorted(_ACTORS - {"Operator"})]
    assert faults(page, {"test_it"}) == others + fault


def test_the_page_says_how_to_report() -> None:
    """Through the repository's private advisories, not an e-mail address."""
    page = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    assert "private security\nadvisory" in page
    assert "@" not in page.partition("## Who")[0]
