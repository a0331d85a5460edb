"""docs/operations.md matches the code: quoted messages and referenced tests exist."""

import re

from tests.conftest import REPOSITORY

_PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
_LINES = [line.split("|")[1:-1] for line in _PAGE.splitlines() if line.startswith("|") and "---" not in line]
_ROWS = [cells for cells in _LINES if len(cells) == 4]  # tests/cli/test_exit_codes.py checks the table of codes
_SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "pipelines").rglob("*.py")))
_TESTS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "tests").rglob("test_*.py")))


def test_the_referenced_tests_exist() -> None:
    """Every fault names a test, or `-` for none."""
    named = [cell.strip().strip("`") for *_, cell in _ROWS if cell.strip() != "shown by"]
    assert len(named) > 30
    assert [name for name in named if name != "-" and f"def {name}(" not in _TESTS] == []


def test_the_quoted_messages_exist() -> None:
    """Quoted messages occur in the code; `...`, N and M are placeholders."""
    quoted = {words for cell, *_ in _ROWS for words in re.findall(r"`([^`]+)`", cell)}
    parts = [part.strip() for words in quoted for part in re.split(r"\.\.\.|\bN %|\bN\b|\bM\b", words) if part.strip()]
    source = re.sub(r'"\s*\n\s*f?"', "", _SOURCE)
    assert [part for part in parts if part not in source] == []
