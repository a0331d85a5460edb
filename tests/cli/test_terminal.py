"""Terminal output: nothing that a producer has sent can control a terminal."""

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

from pipelines.boundary.text import CONTROL_CHARS
from pipelines.cli.app import app
from pipelines.cli.output import _VisibleLines, show_traceback
from pipelines.cli.rows import Format, write
from pipelines.emit.producer import Record
from pipelines.errors import DEFECT, exit_statuses
from pipelines.settings import Settings
from tests.commands import KARMALAKE, run
from tests.conftest import REPOSITORY
from tests.draining import send
from tests.test_crashes import environment
from tests.test_hostile import HOSTILE, bus

__all__ = ["bus"]
_USERS = [user for user in HOSTILE if "\0" not in user and set(map(ord, user)) & set(CONTROL_CHARS)]
_HOSTILE_TEXT = "\x1b]0;title\x07\x1b[31m\x9b2J\u202e\u200f\r\n[red][link=https://evil.example]x"
_MARK = "#### "
_EXIT_CODES = {str(status.exit_code) for status in exit_statuses() if status != DEFECT}
_FORMS = [["--format", form] for form in ("table", "csv", "spreadsheet", "json")]

RUN: dict[str, list[list[str]]] = {
    "show": [["--", user] for user in _USERS] + [["--", _HOSTILE_TEXT]],
    "leaderboard": [[], ["--user", _HOSTILE_TEXT], [_HOSTILE_TEXT]],
    "scores": [[], *_FORMS, ["--policy", _HOSTILE_TEXT], ["--scope", _HOSTILE_TEXT]],
    "explain": [["--", user] for user in _USERS]
    + [[*form, "--", _USERS[0]] for form in _FORMS]
    + [["--from", "2020-01-01", "--", _USERS[0]], ["--", _HOSTILE_TEXT], ["--as-of", _HOSTILE_TEXT, "--", "x"]]
    + [["--scope", f"x={_HOSTILE_TEXT}", "--", _USERS[0]]],
    "trend": [[], ["daily"], ["review_bombs"]]
    + [["movers", *form] for form in _FORMS]
    + [[_HOSTILE_TEXT], ["movers", "--set", f"x={_HOSTILE_TEXT}"]],
    "sql": [["FROM events", *form] for form in _FORMS]
    + [
        [query]
        for query in (
            "FROM dead_letters",
            "FROM conflicts",
            f'SELECT 1 AS "{_HOSTILE_TEXT}"',
            f'FROM "{_HOSTILE_TEXT}"',
        )
    ],
    "dead-letters list": [["--all"]],
    "dead-letters show": [["{place}"], [_HOSTILE_TEXT], [f"-{_HOSTILE_TEXT}"], ["-\u202e"], ["--\ufeff"]],
    "dead-letters export": [["{folder}/letters.ndjson"], [f"{{folder}}/{_HOSTILE_TEXT}"]],
    "dead-letters requeue": [[], ["--reason", _HOSTILE_TEXT]],
    "dead-letters discard": [["--why", _HOSTILE_TEXT, "--place", "{place}"]],
    "policy list": [[]],
    "policy check": [["{policy}"], [_HOSTILE_TEXT]],
    "policy diff": [
        ["default", "default"],
        *(["default", "{policy}", *form] for form in _FORMS),
        ["default", "default", "--gate", _HOSTILE_TEXT],
    ],
    "policy test": [["{cases}"], [_HOSTILE_TEXT]],
    "policy activate": [["{policy}", "--canary"], ["{policy}", "--why", _HOSTILE_TEXT], [_HOSTILE_TEXT]],
    "policy rollback": [["--why", _HOSTILE_TEXT, "--operator", _HOSTILE_TEXT]],
    "sources list": [[], ["--folder", _HOSTILE_TEXT]],
    "sources check": [[_HOSTILE_TEXT]],
    "sources diff": [[_HOSTILE_TEXT]],
    "contract show": [[], ["score-change", "--format", "json"], [_HOSTILE_TEXT]],
    "contract check": [["{schema}", "{schema}"], [_HOSTILE_TEXT, _HOSTILE_TEXT]],
    "topics ensure": [[]],
    "topics check": [[]],
    "topics describe": [[]],
    "doctor": [[]],
    "errors": [[], ["KL-IO"], [_HOSTILE_TEXT]],
    "lag": [[], ["--json"]],
    "drain": [[]],
    "skip": [["{place}", "--why", _HOSTILE_TEXT], [_HOSTILE_TEXT, "--why", _HOSTILE_TEXT]],
    "refresh": [[]],
    "rebuild": [[]],
    "publish": [[], ["--full"]],
    "compact": [[]],
    "vacuum": [[]],
    "verify": [[]],
    "audit": [[], ["--json"]],
    "retract": [
        *(
            ["--why", _HOSTILE_TEXT, "--operator", _HOSTILE_TEXT, *more, "--", f"0-{_USERS[0]}"]
            for more in ([], ["--dry-run"])
        ),
        [_HOSTILE_TEXT, "--why", _HOSTILE_TEXT],
    ],
    "adjust": [
        *(
            ["--why", _HOSTILE_TEXT, "--id", _HOSTILE_TEXT, "--", _USERS[0], points]
            for points in ("-5", "6", _HOSTILE_TEXT)
        ),
        [_HOSTILE_TEXT, "5", "--why", _HOSTILE_TEXT],
    ],
    "user merge": [
        *(
            ["--why", _HOSTILE_TEXT, "--operator", _HOSTILE_TEXT, *more, "--", *_USERS[2:4]]
            for more in (["--dry-run"], [])
        ),
        [_HOSTILE_TEXT, "x", "--why", _HOSTILE_TEXT],
    ],
    "user rename": [
        ["--why", _HOSTILE_TEXT, "--operator", _HOSTILE_TEXT, "--", _USERS[3], _HOSTILE_TEXT],
        [_HOSTILE_TEXT, "x", "--why", _HOSTILE_TEXT],
    ],
    "user export": [
        ["--to", "{folder}/exported", "--", _USERS[1]],
        ["--to", "{folder}/exported", "--", _USERS[1]],
        ["--to", f"{{folder}}/{_HOSTILE_TEXT}", _HOSTILE_TEXT],
    ],
    "erase": [["--yes", _USERS[-1]], ["--yes", _HOSTILE_TEXT]],
    "copy": [["{folder}/copy"]],
    "export": [["{folder}/exported.duckdb"]],
    "replay": [["--into", "{folder}/replayed"], ["--from-time", _HOSTILE_TEXT]],
    "emit": [["{events}", "--action-type", "Voted"], ["{events}", "--user-id", _HOSTILE_TEXT], [_HOSTILE_TEXT]],
    "backfill": [["{events}", "--action-type", "Voted"], ["{events}", "--user-id", _HOSTILE_TEXT]],
    "loads list": [[], ["--batches"]],
    "loads withdraw": [
        [_HOSTILE_TEXT, "--dry-run"],
        ["--file", _HOSTILE_TEXT],
        ["--file", "{events}", "--dry-run"],
        ["--file", "{events}", "--why", _HOSTILE_TEXT],
    ],
    "notify": [["--check", "--rules", "{rules}"]],
    "local status": [[]],
}
"""Commands that print untrusted data, with arguments that make them print it."""

NOT_RUN = {
    "demo": "simulates events of its own",
    "simulate": "simulates events of its own",
    "stream": "prints what drain, refresh and publish print, and ends with a signal",
    "ingest": "prints what drain prints, and ends with a signal",
    "serve": "prints what refresh and publish print, and ends with a signal",
    "relay": "prints counts, and needs a database",
    "dashboard": "prints its address; the page is tests/dashboard",
    "dagster": "prints its address; the page is Dagster's",
    "local start": "prints what local status prints",
    "local stop": "prints no untrusted data",
}


def _commands(command: Any, names: tuple[str, ...] = ()) -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield " ".join(names)
        return
    for name, inner in command.commands.items():
        yield from _commands(inner, (*names, name))


def test_every_command_is_covered() -> None:
    """Every command is in RUN, with arguments, or in NOT_RUN, with a reason."""
    commands = set(_commands(typer.main.get_command(app)))
    assert commands == {*RUN, *NOT_RUN}
    assert not RUN.keys() & NOT_RUN.keys()


def _parameters(command: Any) -> Iterator[Any]:
    for inner in getattr(command, "commands", {}).values():
        yield from _parameters(inner)
    yield from command.params


def test_every_number_has_bounds() -> None:
    """One too large for the database, the cache or memory is refused as a mistake of the command line."""
    parameters = list(_parameters(typer.main.get_command(app)))
    numbers = [each for each in parameters if each.type_descriptor.annotation in (int, float)]
    assert len(numbers) > 10
    assert [each.name for each in numbers if each.min is None or each.max is None] == []


def test_commands_print_only_through_output() -> None:
    """All output goes through `output.py`, which escapes control characters."""
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


_POLICY = """
name = "hostile"
version = "1"
description = "\\u001b]0;title\\u0007\\u202e [red]x"
[actions.DriverRated]
points = 1
"""
_CASES = """
as_of = 2026-03-11
[[cases]]
name = "\\u001b[31m\\u202e [red]x"
[[cases.events]]
event_id = "\\u001b[31m\\u202e [red]e"
user_id = "\\u001b[31m\\u202e [red]u"
action_type = "DriverRated"
timestamp = 2026-03-10
[cases.expect."\\u001b[31m\\u202e [red]u"]
all_time_score = 2
"""
_RULES = """
[destinations.app]
kind = "redis_stream"
key = "notifications"
[[rules]]
name = "output"
actions = ["DriverRated"]
text = "\\u001b[31m\\u202e [red]{user_id}"
to = ["app"]
"""


@pytest.fixture
def world(bus: Settings, tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of commands on a lake with hostile ids, and the values of the placeholders."""
    send(bus, [*_letters()])
    (tmp_path / "events.csv").write_text(
        f'user_id,timestamp,"{_HOSTILE_TEXT}"\n"{_HOSTILE_TEXT}",2026-02-30T25:00:00Z,x\n'
    )
    (tmp_path / "policy.toml").write_text(_POLICY)
    (tmp_path / "policy.test.toml").write_text(_CASES)
    (tmp_path / "rules.toml").write_text(_RULES)
    (tmp_path / "event.json").write_text((REPOSITORY / "pipelines/contract/event.json").read_text())
    places = {
        "folder": str(tmp_path),
        "events": str(tmp_path / "events.csv"),
        "policy": str(tmp_path / "policy.toml"),
        "cases": str(tmp_path / "policy.test.toml"),
        "rules": str(tmp_path / "rules.toml"),
        "schema": str(tmp_path / "event.json"),
        "place": f"{bus.kafka.topic}-0@0",
    }
    variables = {
        "KARMALAKE_REDIS_LEADERBOARDS": "all_time",
        "TERM": "dumb",  # our own colours would be escape sequences, too
        "COLUMNS": "200",
    }
    return environment(bus) | variables, places


def _letters() -> Iterator[Record]:
    """Yield malformed records with hostile text in key, value or headers."""
    for value in (_HOSTILE_TEXT.encode(), b"\xff\x1b[31m", b"\x1b"):
        yield Record(_HOSTILE_TEXT.encode(), value)


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


def _terminal_output(runs: list[list[str]], environment: dict[str, str], folder: Path) -> str:
    """Return the output of the commands on a terminal, run one after another in one process."""
    (folder / "runs.json").write_text(json.dumps(runs))
    controller, terminal = pty.openpty()
    program = [sys.executable, "-c", _DRIVER, str(folder / "runs.json"), _MARK]
    output: list[bytes] = []
    with subprocess.Popen(
        program, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder
    ) as process:
        os.close(terminal)
        try:
            while data := _read(controller):
                output.append(data)
        finally:
            process.kill()
            os.close(controller)
    return b"".join(output).decode()


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
def test_no_control_character_reaches_a_terminal(world: tuple[dict[str, str], dict[str, str]], tmp_path: Path) -> None:
    """No command, format or error prints a control character, a direction mark or interpreted markup."""
    variables, places = world
    runs = [
        [*command.split(), *(_filled(argument, places) for argument in given)]
        for command, lines in RUN.items()
        for given in lines
    ]
    output = _terminal_output(runs, variables, tmp_path)
    parts = output.replace("\r\n", "\n").split(f"\n{_MARK}")[1:]
    assert sum(part.startswith("ended") for part in parts) == len(runs), parts[-1]
    allowed = {ord("\n"), ord("\t")}
    for part in parts:
        number = part.partition("\n")[0]
        command = runs[int(number)] if number.isdigit() else number
        assert not set(map(ord, part)) & set(CONTROL_CHARS) - allowed, (command, part)
        assert "Traceback" not in part, (command, part)
    assert {part.split()[1] for part in parts if part.startswith("ended")} <= {"0", *_EXIT_CODES}
    assert "[red]" in output  # markup is not interpreted
    assert "\\u202e" in output


@pytest.mark.slow
@pytest.mark.parametrize("command", [["scores"], ["sql", "FROM reputation"], ["policy", "diff", "default", "default"]])
def test_pipes_and_files_keep_the_exact_values(
    world: tuple[dict[str, str], dict[str, str]], tmp_path: Path, command: list[str]
) -> None:
    """CSV, JSON and Parquet keep every id unchanged; tables escape them; spreadsheets evaluate no formula."""
    variables, _ = world

    def output(form: str, *more: str) -> bytes:
        with (tmp_path / "output").open("w+b") as file:
            run([*KARMALAKE, *command, "--format", form, *more], env=variables, stdout=file, check=True)
            file.seek(0)
            return file.read()

    read = {
        "csv": pl.read_csv(output("csv"), infer_schema=False),
        "json": pl.read_ndjson(output("json")),
        "parquet": pl.read_parquet(output("parquet")),
    }
    assert {form: sorted(rows["user_id"]) for form, rows in read.items()} == dict.fromkeys(read, sorted(HOSTILE))
    table = output("table").decode()
    assert not set(map(ord, table)) & set(CONTROL_CHARS) - {ord("\n")}
    cells = pl.read_csv(output("spreadsheet"), infer_schema=False)
    guarded = {user: f"'{user}" if user[0] in "=+-@\t\r\n" else user for user in HOSTILE}
    assert sorted(cells["user_id"]) == sorted(guarded.values())
    assert '\'=HYPERLINK("https://evil.example")' in set(cells["user_id"])
    file = tmp_path / "rows.csv"
    output("csv", "--output", str(file))
    assert file.read_bytes() == output("csv")
    assert file.stat().st_mode & 0o777 == 0o600


def test_numbers_stay_numbers_in_a_spreadsheet(tmp_path: Path) -> None:
    """Only text is escaped: -5 stays a number; column names, and lists with text, are text."""
    frame = pl.DataFrame({"n": [-5, None], "=name": ["-5", "+1"], "list": [["=1"], []], "bytes": [b"=1", b"x"]})
    write(frame, Format.SPREADSHEET, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["n", "'=name", "list", "bytes"], ["-5", "'-5", "['=1']", "'=1"], ["", "'+1", "[]", "x"]]


def test_a_log_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A log record with quoted newlines is one line; a traceback follows on its own lines."""
    record = logging.LogRecord(
        "pipelines.x", logging.WARNING, "x", 1, "read %s", (f"a\nERROR y: {_HOSTILE_TEXT}",), None
    )
    shown = _VisibleLines().format(record)
    assert shown.count("\n") == 0
    assert not set(map(ord, shown)) & set(CONTROL_CHARS)
    show_traceback(ValueError, ValueError(_HOSTILE_TEXT), None)
    assert not set(map(ord, capsys.readouterr().err)) & set(CONTROL_CHARS) - {ord("\n")}
