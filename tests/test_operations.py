"""The page about faults is true: what it quotes is said somewhere, and the tests that it names exist."""

import re

from tests.conftest import REPOSITORY

_PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
_LINES = [line.split("|")[1:-1] for line in _PAGE.splitlines() if line.startswith("|") and "---" not in line]
_ROWS = [cells for cells in _LINES if len(cells) == 4]  # the table of codes is tests/cli/test_exit_codes.py's
_SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "pipelines").rglob("*.py")))
_TESTS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "tests").rglob("test_*.py")))


def test_the_tests_that_it_names_exist() -> None:
    """Every fault is shown by a test, or says that it is not."""
    named = [cell.strip().strip("`") for *_, cell in _ROWS if cell.strip() != "shown by"]
    assert len(named) > 30
    assert [name for name in named if name != "-" and f"def {name}(" not in _TESTS] == []


def test_what_it_quotes_is_said() -> None:
    """The words that a person is to look for are those of the code; `...` and N stand for what differs."""
    quoted = {words for cell, *_ in _ROWS for words in re.findall(r"`([^`]+)`", cell)}
    parts = [part.strip() for words in quoted for part in re.split(r"\.\.\.|\bN %|\bN\b|\bM\b", words) if part.strip()]
    said = re.sub(r'"\s*\n\s*f?"', "", _SOURCE)
    assert [part for part in parts if part not in said] == []
