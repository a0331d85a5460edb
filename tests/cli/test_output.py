"""Every function that prints escapes what controls a terminal, and interprets no markup; files keep their bytes."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.boundary.text import CONTROL_CHARS
from pipelines.cli import output
from pipelines.cli.output import (
    ProgressBar,
    print_check,
    print_document,
    print_error,
    print_fields,
    print_file,
    print_line,
    print_note,
    print_table,
    print_title,
    print_unfolded_table,
    print_warning,
    progress,
)
from tests.conftest import REPOSITORY

HOSTILE = "\x1b]0;title\x07\x1b[31m\x9b2J\r\u202e\u200f\u2028\ufeff[red]red[/red]"
PRINT: dict[str, Callable[[str], None]] = {
    "line": print_line,
    "title": print_title,
    "note": print_note,
    "check": lambda text: print_check(text, "", passed=True),
    "note of a check": lambda text: print_check("", text, passed=None),
    "document": lambda text: print_document({text: [text]}),
    "unfolded cells": lambda text: print_unfolded_table([text], [[text]]),
    "columns": lambda text: print_table([text], []),
    "cells": lambda text: print_table([""], [[text]]),
    "other cells": lambda text: print_table([""], [[[text]], [Path(text)]]),
    "names": lambda text: print_fields([(text, 1)]),
    "values": lambda text: print_fields([("", text), ("", Path(text))]),
    "error": print_error,
    "warning": print_warning,
}


@pytest.mark.parametrize("name", PRINT)
def test_control_characters_are_escaped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids and messages quote producers: none of their characters moves the cursor, colours the text or reverses it."""
    PRINT[name](HOSTILE)
    printed = "".join(capsys.readouterr())
    assert not set(map(ord, printed)) & set(CONTROL_CHARS) - {ord("\n")}
    assert "[red]red[/red]" in printed.replace("\n", "")


@pytest.mark.parametrize("name", ["line", "title", "note", "check", "error", "warning"])
def test_lines_of_a_message_stay_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A message may have several."""
    PRINT[name]("first\nsecond")
    assert "\\n" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["columns", "cells", "names"])
def test_a_cell_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break in an id adds no row."""
    PRINT[name]("first\nsecond")
    assert "first\\nsecond" in capsys.readouterr().out


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Return a file of two lines with hostile text and a byte that is not UTF-8."""
    path = tmp_path / "rows"
    path.write_bytes(f'{{"a": "{HOSTILE.translate({27: 127, 7: 127, 13: 127})}"}}\n'.encode() + b'{"a": "\xff"}\n')
    return path


def test_a_file_is_escaped_on_a_terminal_only(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A pipe and a file get every byte; a terminal gets escapes, and a byte that is not UTF-8 is not an error."""
    print_file(rows)
    assert capfdbinary.readouterr().out == rows.read_bytes()
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    print_file(rows)
    printed = capfdbinary.readouterr().out.decode()
    assert not set(map(ord, printed)) & set(CONTROL_CHARS) - {ord("\n")}
    assert "\\x7f" in printed
    assert printed.endswith('{"a": "\\xff"}\n')


def test_json_on_a_terminal_stays_json(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its escapes are those of JSON, so that a copy of the output is the same document."""
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    print_file(rows, is_json=True)
    first = capsys.readouterr().out.splitlines()[0]
    assert not set(map(ord, first)) & set(CONTROL_CHARS)
    assert json.loads(first) == json.loads(rows.read_text(encoding="utf-8", errors="replace").split("\n")[0])


def test_a_carriage_return_in_a_row_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would overwrite the line; it does not end a row, as it would where Python reads lines."""
    (tmp_path / "rows").write_bytes(b"a\rb\r\nc\n")
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    print_file(tmp_path / "rows")
    assert capsys.readouterr().out == "a\\rb\\r\nc\n"


def _shown(monkeypatch: pytest.MonkeyPatch, act: Callable[[ProgressBar], None], description: str) -> str:
    """Return what a progress bar writes to a terminal."""
    written = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")  # there is no bar in a dumb terminal
    monkeypatch.setattr(output, "err", Console(file=written, force_terminal=True, width=200))
    with progress(description) as bar:
        act(bar)
        bar._bar.refresh()
    return written.getvalue()


@pytest.mark.parametrize("place", ["description", "message", "log"])
def test_a_progress_bar_is_escaped(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """File names, messages and log records are shown in it: as text, without markup."""
    acts: dict[str, Callable[[ProgressBar], None]] = {
        "description": lambda bar: bar(1),
        "message": lambda bar: bar.show(HOSTILE),
        "log": lambda _: logging.getLogger("pipelines.test").info("%s", HOSTILE),
    }
    shown = _shown(monkeypatch, acts[place], HOSTILE if place == "description" else "loading")
    assert "[red]red[/red]" in shown
    assert not set(shown) & set("\x07\x9b\u202e\u200f\u2028\ufeff")
    assert "\x1b]0" not in shown


_LOG = """
import logging, sys
from pipelines.cli.output import quiet_libraries
quiet_libraries()
try:
    raise ValueError(sys.argv[1])
except ValueError:
    logging.getLogger("a.library").exception("read %s", sys.argv[1])
"""


def test_every_log_record_is_escaped() -> None:
    """Also one of a library: a record is one visible line, and its traceback follows."""
    command = [sys.executable, "-c", _LOG, f"a\nERROR {HOSTILE}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    first, *traceback = done.stderr.decode().splitlines()
    assert first.startswith("ERROR a.library: read a\\nERROR ")
    assert traceback[0].startswith("Traceback")
    assert not set(map(ord, done.stderr.decode())) & set(CONTROL_CHARS) - {ord("\n")}


def test_an_unfolded_table_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the width, so an id can be copied."""
    long = "file-" + "0123456789abcdef" * 20
    print_unfolded_table(["load", "rows"], [(long, 5), ("b", 12)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["load", "rows"], [long, "5"], ["b", "12"]]
    assert len({len(line) for line in lines}) == 1


def test_a_pipe_gets_a_line_for_each_row_without_padding(capsys: pytest.CaptureFixture[str]) -> None:
    """It has no width to fold at, and no space ends a line; an empty line of a value stays."""
    long = "0123456789" * 20
    print_table(["user", "why"], [("ada", long), ("bo", "short")])
    print_fields([("user", "ada"), ("why", f"{long}\n\nend")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["user  why", f"ada   {long}", "bo    short"]
    assert lines[3:] == ["user  ada", f"why   {long}", "", "      end"]
