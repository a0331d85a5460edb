"""The one door of what commands print: on a terminal, whatever a producer has sent is text and does nothing."""

import ast
import csv
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer

from pipelines.boundary.text import STEERING
from pipelines.cli.app import app
from pipelines.cli.output import _VisibleLines, show_traceback
from pipelines.cli.rows import Format, write
from pipelines.emit.producer import Record
from pipelines.errors import DEFECT, endings
from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.draining import send
from tests.test_crashes import environment
from tests.test_hostile import HOSTILE, bus

__all__ = ["bus"]
_USERS = [user for user in HOSTILE if "\0" not in user and set(map(ord, user)) & set(STEERING)]
_NASTY = "\x1b]0;title\x07\x1b[31m\x9b2J\u202e\u200f\r\n[red][link=https://evil.example]x"
_MARK = "#### "
_EXIT_CODES = {str(ending.exit_code) for ending in endings() if ending != DEFECT}
_FORMS = [["--format", form] for form in ("table", "csv", "spreadsheet", "json")]

RUN: dict[str, list[list[str]]] = {
    "show": [["--", user] for user in _USERS] + [["--", _NASTY]],
    "leaderboard": [[], ["--user", _NASTY], [_NASTY]],
    "scores": [[], *_FORMS, ["--policy", _NASTY]],
    "explain": [["--", user] for user in _USERS]
    + [[*form, "--", user] for form in _FORMS for user in _USERS[:2]]
    + [["--from", "2020-01-01", "--", _USERS[0]], ["--", _NASTY], ["--as-of", _NASTY, "--", "x"]],
    "trend": [[]]
    + [[name, *form] for name in ("movers", "daily", "review_bombs") for form in _FORMS]
    + [[_NASTY], ["movers", "--set", f"x={_NASTY}"]],
    "sql": [["FROM events", *form] for form in _FORMS]
    + [[query] for query in ("FROM dead_letters", "FROM conflicts", f'SELECT 1 AS "{_NASTY}"', f'FROM "{_NASTY}"')],
    "dead-letters list": [["--all"]],
    "dead-letters show": [["{place}"], [_NASTY]],
    "dead-letters export": [["{folder}/letters.ndjson"], [f"{{folder}}/{_NASTY}"]],
    "dead-letters requeue": [[], ["--reason", _NASTY]],
    "dead-letters discard": [["--why", _NASTY, "--place", "{place}"]],
    "policy list": [[]],
    "policy check": [["{policy}"], [_NASTY]],
    "policy diff": [["default", "default"], *([["default", "{policy}", *form] for form in _FORMS])],
    "policy activate": [["{policy}"], [_NASTY]],
    "contract show": [[]],
    "contract check": [["{schema}", "{schema}"], [_NASTY, _NASTY]],
    "topics ensure": [[]],
    "topics check": [[]],
    "topics describe": [[]],
    "doctor": [[]],
    "errors": [[], ["KL-IO"], [_NASTY]],
    "lag": [[], ["--json"]],
    "drain": [[]],
    "skip": [["{place}", "--why", _NASTY], [_NASTY, "--why", _NASTY]],
    "refresh": [[]],
    "rebuild": [[]],
    "publish": [[], ["--full"]],
    "compact": [[]],
    "vacuum": [[]],
    "verify": [[]],
    "audit": [[], ["--json"]],
    "erase": [["--yes", _USERS[-1]], ["--yes", _NASTY]],
    "copy": [["{folder}/copy"]],
    "replay": [["--into", "{folder}/replayed"], ["--from-time", _NASTY]],
    "emit": [["{events}", "--action-type", "Voted"], ["{events}", "--user-id", _NASTY], [_NASTY]],
    "backfill": [["{events}", "--action-type", "Voted"], ["{events}", "--user-id", _NASTY]],
    "notify": [["--check", "--rules", "{rules}"]],
    "local status": [[]],
}
"""What prints something of others, with arguments that bring it out."""

NOT_RUN = {
    "demo": "makes a world of its own",
    "simulate": "makes a world of its own",
    "stream": "prints what drain, refresh and publish print, and ends with a signal",
    "relay": "prints counts, and needs a database",
    "dashboard": "prints its address; the page is tests/dashboard",
    "local start": "prints what local status prints",
    "local stop": "prints two words of ours",
}


def _commands(command: Any, names: tuple[str, ...] = ()) -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield " ".join(names)
        return
    for name, inner in command.commands.items():
        yield from _commands(inner, (*names, name))


def test_every_command_is_run_or_named() -> None:
    """A new command stands here, with what brings out its output, or a reason why it is not run."""
    commands = set(_commands(typer.main.get_command(app)))
    assert commands == {*RUN, *NOT_RUN}
    assert not RUN.keys() & NOT_RUN.keys()


def test_no_command_prints_by_itself() -> None:
    """Whatever the command line prints goes through `output.py`, which makes it visible."""
    own = {"print", "print_json", "echo", "secho", "Console"}
    for path in (REPOSITORY / "pipelines" / "cli").glob("*.py"):
        if path.name == "output.py":
            continue
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"std(out|err)\.(write|buffer)", source), path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert name not in own, f"{path}:{node.lineno}"


@pytest.fixture
def world(bus: Settings, tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of commands in a world of hostile names, and what stands for places and files."""
    send(bus, [*_letters()])
    (tmp_path / "events.csv").write_text(f'user_id,timestamp,"{_NASTY}"\n"{_NASTY}",2026-02-30T25:00:00Z,x\n')
    (tmp_path / "policy.toml").write_text(_POLICY)
    (tmp_path / "rules.toml").write_text(_RULES)
    (tmp_path / "event.json").write_text((REPOSITORY / "pipelines/contract/event.json").read_text())
    places = {
        "folder": str(tmp_path),
        "events": str(tmp_path / "events.csv"),
        "policy": str(tmp_path / "policy.toml"),
        "rules": str(tmp_path / "rules.toml"),
        "schema": str(tmp_path / "event.json"),
        "place": f"{bus.kafka.topic}-0@0",
    }
    assert bus.redis.url is not None
    ours = {
        "KARMALAKE_REDIS_URL": bus.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": bus.redis.prefix,
        "KARMALAKE_REDIS_LEADERBOARDS": "all_time",
        "TERM": "dumb",  # colours of ours would be escapes, too
        "COLUMNS": "200",
    }
    return environment(bus) | ours, places


_POLICY = """
name = "hostile"
version = "1"
description = "\\u001b]0;title\\u0007\\u202e [red]x"
[actions.DriverRated]
points = 1
"""
_RULES = """
[destinations.app]
kind = "redis_stream"
key = "notifications"
[[rules]]
name = "told"
actions = ["DriverRated"]
text = "\\u001b[31m\\u202e [red]{user_id}"
to = ["app"]
"""


def _letters() -> Iterator[Record]:
    """Yield records that are no events, each with something nasty in its key, value or headers."""
    for value in (_NASTY.encode(), b"\xff\x1b[31m", b"\x1b"):
        yield Record(_NASTY.encode(), value)


_DRIVER = """
import json, os, sys
from pipelines.cli import main
for number, arguments in enumerate(json.loads(open(sys.argv[1]).read())):
    os.write(1, f"\\n{sys.argv[2]}{number}\\n".encode())
    sys.argv[:1] = ["karmalake"]
    kept, sys.argv = sys.argv, ["karmalake", *arguments]
    try:
        main()
    except SystemExit as end:
        os.write(1, f"\\n{kept[2]}ended {end.code}\\n".encode())
    sys.stdout.flush(), sys.stderr.flush()
    sys.argv = kept
"""


def _told_on_a_terminal(runs: list[list[str]], environment: dict[str, str], folder: Path) -> str:
    """Return everything that the commands print on a terminal, one after another in one process."""
    (folder / "runs.json").write_text(json.dumps(runs))
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", _DRIVER, str(folder / "runs.json"), _MARK]
    told: list[bytes] = []
    with subprocess.Popen(program, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder) as process:
        os.close(theirs)
        try:
            while data := _read(ours):
                told.append(data)
        finally:
            process.kill()
            os.close(ours)
    return b"".join(told).decode()


def _filled(argument: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        argument = argument.replace(f"{{{name}}}", place)
    return argument


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.slow
def test_nothing_reaches_a_terminal_that_steers_it(
    world: tuple[dict[str, str], dict[str, str]], tmp_path: Path
) -> None:
    """No command, no format and no error prints a control character, a mark of direction or markup that counts."""
    variables, places = world
    runs = [
        [*command.split(), *(_filled(argument, places) for argument in given)]
        for command, lines in RUN.items()
        for given in lines
    ]
    told = _told_on_a_terminal(runs, variables, tmp_path)
    parts = told.replace("\r\n", "\n").split(f"\n{_MARK}")[1:]
    assert sum(part.startswith("ended") for part in parts) == len(runs), parts[-1]
    allowed = {ord("\n"), ord("\t")}
    for part in parts:
        number = part.partition("\n")[0]
        command = runs[int(number)] if number.isdigit() else number
        assert not set(map(ord, part)) & set(STEERING) - allowed, (command, part)
        assert "Traceback" not in part, (command, part)
    assert {part.split()[1] for part in parts if part.startswith("ended")} <= {"0", *_EXIT_CODES}
    assert "[red]" in told  # markup is text
    assert "\\u202e" in told


@pytest.mark.slow
@pytest.mark.parametrize("command", [["scores"], ["sql", "FROM reputation"], ["policy", "diff", "default", "default"]])
def test_a_pipe_and_a_file_hold_the_very_values(
    world: tuple[dict[str, str], dict[str, str]], tmp_path: Path, command: list[str]
) -> None:
    """CSV, JSON and Parquet hold every id as it is; a table is for people; a spreadsheet computes nothing."""
    variables, _ = world
    program = [sys.executable, "-c", "from pipelines.cli import main; main()", *command]

    def told(form: str, *more: str) -> bytes:
        return subprocess.run(
            [*program, "--format", form, *more], env=variables, capture_output=True, check=True
        ).stdout

    read = {
        "csv": pl.read_csv(told("csv"), infer_schema=False),
        "json": pl.read_ndjson(told("json")),
        "parquet": pl.read_parquet(told("parquet")),
    }
    assert {form: sorted(rows["user_id"]) for form, rows in read.items()} == dict.fromkeys(read, sorted(HOSTILE))
    table = told("table").decode()
    assert not set(map(ord, table)) & set(STEERING) - {ord("\n")}
    cells = pl.read_csv(told("spreadsheet"), infer_schema=False)
    guarded = {user: f"'{user}" if user[0] in "=+-@\t\r\n" else user for user in HOSTILE}
    assert sorted(cells["user_id"]) == sorted(guarded.values())
    assert '\'=HYPERLINK("https://evil.example")' in set(cells["user_id"])
    made = tmp_path / "rows.csv"
    told("csv", "--output", str(made))
    assert made.read_bytes() == told("csv")
    assert made.stat().st_mode & 0o777 == 0o600


def test_numbers_stay_numbers_in_a_spreadsheet(tmp_path: Path) -> None:
    """Only texts are guarded: -5 is a number, a column name is text, and so is what holds texts."""
    frame = pl.DataFrame({"n": [-5, None], "=name": ["-5", "+1"], "list": [["=1"], []], "bytes": [b"=1", b"x"]})
    write(frame, Format.SPREADSHEET, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["n", "'=name", "list", "bytes"], ["-5", "'-5", "['=1']", "'=1"], ["", "'+1", "[]", "x"]]


def test_a_log_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A record that quotes lines of others cannot look like several; a traceback follows in lines of its own."""
    record = logging.LogRecord("pipelines.x", logging.WARNING, "x", 1, "read %s", (f"a\nERROR y: {_NASTY}",), None)
    shown = _VisibleLines().format(record)
    assert shown.count("\n") == 0
    assert not set(map(ord, shown)) & set(STEERING)
    show_traceback(ValueError, ValueError(_NASTY), None)
    assert not set(map(ord, capsys.readouterr().err)) & set(STEERING) - {ord("\n")}
