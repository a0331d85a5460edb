"""docs/start.md: its commands, run in order in an empty folder, print what it shows, and its code cell runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
_PAGE = (REPOSITORY / "docs" / "start.md").read_text(encoding="utf-8")
_SHOWN_ONLY = ("make", "source")
"""Commands that set up the repository, which CI has done before."""


def _commands() -> list[tuple[list[str], list[str]]]:
    """Return each command with its expected output lines."""
    found: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", _PAGE, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line[2:]), []))
            else:
                found[-1][1].append(line)
    return [(command, lines) for command, lines in found if command[0] not in _SHOWN_ONLY]


def _words(text: str) -> str:
    return " ".join(text.split())


def test_the_first_five_minutes(tmp_path: Path) -> None:
    """The commands of the page print the documented output, and leave no process running (`once`)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
    entry = [sys.executable, "-c", "from pipelines.cli import main; main()"]

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return _words(done.stdout)

    (table,) = re.findall(r"```csv\n(.*?)```", _PAGE, re.DOTALL)
    (tmp_path / "ratings.csv").write_text(table, encoding="utf-8")
    (cell,) = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
    commands = _commands()
    assert [command[0] for command, _ in commands] == ["karmalake"] * 8
    try:
        for command, lines in commands[:-1]:
            output = run([*entry, *command[1:]])
            assert [line for line in lines if _words(line) not in output] == [], output
        run([sys.executable, "-c", cell])
        run([*entry, *commands[1][0][1:]])
        assert "duplicates 3" in run([*entry, "drain"])
    finally:
        assert "broker, cache" in run([*entry, *commands[-1][0][1:]])
