"""Every error class has its own exit code and error code, which docs/operations.md explains."""

import ast
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipelines.errors as errors_module
from pipelines.cli.error_codes import PAGE, explanations
from pipelines.cli.failures import describe_failure
from pipelines.errors import DEFECT, INTERRUPTED, IO, PERMISSION, KarmalakeError, exit_status_of, exit_statuses
from tests import commands
from tests.commands import KARMALAKE
from tests.conftest import REPOSITORY
from tests.share import share

_COLUMNS = ["--user-id", "u", "--time", "t", "--action-type", "A"]
_CLASSES = [KarmalakeError, *KarmalakeError.__subclasses__()]
_INJECTED = """
import signal, sys
import pipelines.errors, pipelines.settings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with SIGINT ignored
raised = sys.argv.pop()
def fail():
    raise eval(raised)
pipelines.settings.load_settings = fail
sys.argv.append("verify")
from pipelines.cli import main
main()
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs a command or a program in an empty folder, without services."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
    environment |= {"KARMALAKE_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}

    def ran(*arguments: str, program: str | None = None, **changed: str) -> subprocess.CompletedProcess[str]:
        command = ["-c", program] if program else KARMALAKE
        return commands.run([*command, *arguments], env=environment | changed, cwd=tmp_path)

    return ran


def _result(done: subprocess.CompletedProcess[str]) -> tuple[int, list[str]]:
    return done.returncode, re.findall(r"^error (KL-[A-Z-]+): ", done.stderr, re.MULTILINE)


def test_codes_are_distinct_and_stable() -> None:
    """No two classes share a code or an exit code, and supervisors rely on these numbers."""
    assert {status.code: status.exit_code for status in exit_statuses()} == {
        "KL-FAILED": 1,
        "KL-USAGE": 2,
        "KL-REJECTED-RECORDS": 65,
        "KL-DEFECT": 70,
        "KL-IO": 74,
        "KL-UNAVAILABLE": 75,
        "KL-PERMISSION": 77,
        "KL-CONFIGURATION": 78,
        "KL-POLICY": 80,
        "KL-LOST-RECORDS": 81,
        "KL-CORRUPTION": 82,
        "KL-FENCED": 83,
        "KL-COMMIT-UNKNOWN": 84,
        "KL-NEWER-FORMAT": 85,
        "KL-INTERRUPTED": 130,
    }
    assert len({status.exit_code for status in exit_statuses()}) == len(exit_statuses())
    error_classes = [
        kind for kind in vars(errors_module).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert set(error_classes) == set(_CLASSES)
    assert all("code" in vars(kind) and "exit_code" in vars(kind) for kind in error_classes)


def test_the_page_has_a_section_and_a_row_for_each_code() -> None:
    """And for no other; each section says what to do, and links only to what a wheel contains."""
    page = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\d+) \| \[(KL-[A-Z-]+)\]\(#([a-z-]+)\) \| (.+?) \| (may help|does not help) \|", page, re.MULTILINE
    )
    assert [(code, int(number), again == "may help") for number, code, _, _, again in rows] == [
        *map(tuple, exit_statuses())
    ]
    assert all(anchor == code.lower() for _, code, anchor, _, _ in rows)
    raised = {code: name.strip("`") for _, code, _, name, _ in rows}
    assert {kind.code: kind.__name__ for kind in _CLASSES}.items() <= raised.items()
    assert set(explanations()) == {status.code for status in exit_statuses()}
    assert [code for code, text in explanations().items() if "\n\nDo: " not in text or "](" in text] == []


def test_the_documented_supervisor_restarts_transient_errors() -> None:
    """The systemd unit lists exactly the exit codes that need an operator."""
    page = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    named = re.search(r"^RestartPreventExitStatus=(.+)$", page, re.MULTILINE)
    assert named is not None
    assert [*map(int, named[1].split())] == [status.exit_code for status in exit_statuses() if not status.transient]


@pytest.mark.slow
@pytest.mark.parametrize("kind", _CLASSES, ids=lambda kind: kind.__name__)
def test_each_error_class_has_its_exit_code(run: Run, kind: type[KarmalakeError]) -> None:
    """The process exits with the code of the class; the message starts with the error code and ends with a hint."""
    done = run(f"pipelines.errors.{kind.__name__}('what happened')", program=_INJECTED)
    assert _result(done) == (kind.exit_code, [kind.code])
    assert done.stderr == f"error {kind.code}: what happened\n       see karmalake errors {kind.code}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "status"),
    [
        ("OSError(28, 'No space left on device', 'x')", IO),
        ("PermissionError(13, 'Permission denied', 'x')", PERMISSION),
        ("OSError(30, 'Read-only file system', 'x')", PERMISSION),
        ("signal.raise_signal(signal.SIGINT)", INTERRUPTED),
        ("ZeroDivisionError('x')", DEFECT),
        ("BaseException('a panic of another language')", DEFECT),
    ],
)
def test_foreign_exceptions_have_a_code(run: Run, raised: str, status: errors_module.ExitStatus) -> None:
    """Only a defect prints a traceback."""
    done = run(raised, program=_INJECTED)
    assert _result(done) == (status.exit_code, [status.code])
    assert ("Traceback" in done.stderr) == (status is DEFECT)


@pytest.mark.slow
def test_real_errors_have_the_codes_of_their_classes(run: Run, tmp_path: Path) -> None:
    """Real errors, one per class, without injection; none prints a traceback."""
    (tmp_path / "events.csv").write_text("u,t\na,2024-01-01\n")
    (tmp_path / "invalid.csv").write_text("u,t\na,soon\n")
    (tmp_path / "policy.toml").write_text('name = "x"\n[')
    nowhere = {"KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    assert _result(run("verify")) == (2, ["KL-USAGE"])
    assert _result(run("no-such-command")) == (2, ["KL-USAGE"])
    assert _result(run("backfill", "invalid.csv", *_COLUMNS)) == (65, ["KL-REJECTED-RECORDS"])
    assert _result(run("backfill", "events.csv", *_COLUMNS)) == (0, [])
    assert _result(run("explain", "nobody")) == (1, ["KL-FAILED"])
    assert _result(run("doctor")) == (1, ["KL-FAILED"])
    assert _result(run("scores", "--policy", "policy.toml")) == (80, ["KL-POLICY"])
    assert _result(run("drain")) == (78, ["KL-CONFIGURATION"])
    assert _result(run("verify", KARMALAKE_DATA_DIR=str(tmp_path / "events.csv"))) == (78, ["KL-CONFIGURATION"])
    assert _result(run("verify", KARMALAKE_CONFIG=str(tmp_path))) == (78, ["KL-CONFIGURATION"])
    for command in ("drain", "lag", "audit"):
        done = run(command, **nowhere)
        assert _result(done) == (75, ["KL-UNAVAILABLE"])
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_torn_lake_has_its_exit_code(run: Run, tmp_path: Path) -> None:
    """A torn log entry below others is corruption; a retry does not help."""
    for day in (1, 2, 3):
        (tmp_path / "events.csv").write_text(f"u,t\na,2024-01-0{day}\n")
        assert run("backfill", "events.csv", *_COLUMNS).returncode == 0
    entries = sorted((tmp_path / "data" / "lake" / "events" / "_delta_log").glob("*.json"))
    entries[-2].write_bytes(entries[-2].read_bytes()[:40])
    assert _result(run("refresh")) == (82, ["KL-CORRUPTION"])


_PRINTING = [["errors"], ["--help"], ["scores"], ["contract", "show"], ["scores", "--format", "table"]]


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error(run: Run, tmp_path: Path) -> None:
    """`| head` ends any output silently, with the exit code of shells; a full disk is reported."""
    (tmp_path / "events.csv").write_text("u,t\na,2024-01-01\n")
    run("backfill", "events.csv", *_COLUMNS)
    for command in share(_PRINTING, 2):
        read_end, write_end = os.pipe()
        os.close(read_end)
        assert _with_output(command, write_end, tmp_path) == (128 + signal.SIGPIPE, "")
        if Path("/dev/full").exists() and command != ["--help"]:
            code, error = _with_output(command, os.open("/dev/full", os.O_WRONLY), tmp_path)
            assert (code, error.partition(":")[0]) == (74, "error KL-IO")


def _with_output(command: list[str], output: int, folder: Path) -> tuple[int, str]:
    environment = {**os.environ, "KARMALAKE_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(REPOSITORY)}
    with os.fdopen(output, "wb") as file:
        program = [sys.executable, *KARMALAKE, *command]  # its last flush is tested as well
        done = subprocess.run(program, env=environment, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_closed_standard_streams_corrupt_no_lake_file(tmp_path: Path) -> None:
    """With `>&- 2>&-` a command works: no file that it opens becomes standard output."""
    (tmp_path / "events.csv").write_text("u,t\na,2024-01-01\n")
    command = " ".join(["exec", sys.executable, "-c", f"'{KARMALAKE[-1]}'", "backfill events.csv", *_COLUMNS])
    environment = {**os.environ, "KARMALAKE_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(REPOSITORY)}
    for closed in (">&-", "<&- >&- 2>&-"):
        assert (
            subprocess.run(["sh", "-c", f"{command} {closed}"], cwd=tmp_path, env=environment, check=False).returncode
            == 0
        )


@pytest.mark.slow
def test_the_command_errors_explains_each_code(run: Run) -> None:
    """By error code or exit code; an unknown one is a usage error; without one, all are listed."""
    listed = run("errors").stdout
    for status in exit_statuses():
        assert re.search(rf"^{status.exit_code} +{status.code} ", listed, re.MULTILINE)
    for argument in ("KL-LOST-RECORDS", "kl-lost-records", "81"):
        assert "karmalake drain --accept-loss" in run("errors", argument).stdout
    assert _result(run("errors", "KL-NONE")) == (2, ["KL-USAGE"])


def test_the_package_contains_the_operations_page() -> None:
    """The image is built with docs/operations.md; tests/test_wheel.py looks for it in the wheel."""
    assert f"COPY {PAGE} {PAGE}" in (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    assert f"!{PAGE}" in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_message_refers_to_the_repository() -> None:
    """Messages name no page, test or `make` target, which a wheel does not contain."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{text.lineno}: {text.value}"
        for folder in ("pipelines", "assets")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        if not path.name.startswith("reference") and not path.name.endswith("_pb2.py")
        for text in _texts(ast.parse(path.read_text(encoding="utf-8")))
        if re.search(r"\b(docs|tests|examples|benchmarks)/\w|\w\.md\b|`make \w", str(text.value))
    ]
    assert [line for line in found if not re.search(r": (docs/operations\.md|docs/[a-z]+\.md)$", line)] == []


def _texts(tree: ast.AST) -> list[ast.Constant]:
    """Return every string except docstrings and the descriptions of fields."""
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described
    ]


def test_the_numbers_of_tls_and_of_host_names_are_not_those_of_files() -> None:
    """1 is a missing permission in a file system, and anything in TLS: the network may answer again."""
    for error in (ssl.SSLError(1, "[SSL] wrong"), ssl.SSLCertVerificationError(1, "x"), socket.gaierror(-2, "unknown")):
        message, status = describe_failure(error)
        assert status == ("KL-UNAVAILABLE", 75, True)
        assert "writing" not in message


def test_a_subclass_has_the_code_of_its_class() -> None:
    """A subclass has the codes of its base class."""
    assert exit_status_of(errors_module.TransientError("x")) == ("KL-UNAVAILABLE", 75, True)
    assert exit_status_of(errors_module.FencedError("x")) == ("KL-FENCED", 83, False)
