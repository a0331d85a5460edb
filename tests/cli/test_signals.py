"""The event that signals set: when the process ends by itself, and when at once."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_WAITS_FOREVER = """
import time
from threading import Thread
from pipelines.cli.signals import stop_on_signals
stopping = stop_on_signals()
stopping.seconds = {seconds}
def report():
    stopping.wait()
    print("stopping", flush=True)
Thread(target=report).start()
print("ready", flush=True)
{waiting}
"""
_IN_PYTHON = "while True: time.sleep(600)"
_AFTER_AN_ERROR = """
from pipelines import errors
from pipelines.boundary.stopping import ending_all
try:
    with ending_all(stopping):
        raise {kind}("the \\x1b[31mlake")
except {kind}:
    time.sleep(600)
"""
_HANDLES_ANOTHER = """
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""
_IN_A_LIBRARY = """
import duckdb
duckdb.sql("SELECT sum(hash(a.range + b.range)) FROM range(10000000) AS a, range(10000000) AS b").fetchall()
"""


@contextmanager
def _running(seconds: float, waiting: str) -> Iterator["subprocess.Popen[str]"]:
    program = [sys.executable, "-c", _WAITS_FOREVER.format(seconds=seconds, waiting=waiting)]
    with ended(subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)) as process:
        assert _line(process) == "ready"
        yield process


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("waiting", [_IN_PYTHON, _IN_A_LIBRARY], ids=["in Python", "in a library"])
def test_a_command_that_does_not_end_is_ended(waiting: str) -> None:
    """After the time that it has, with exit code 0, also where its main thread is in a library's call."""
    with _running(0.1, waiting) as process:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (0, "stopping\n")
    assert "left to the next start" in errors


def test_a_command_whose_error_output_is_closed_is_ended() -> None:
    """The message has no reader, which is an error of its own."""
    with _running(0.1, _IN_PYTHON) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize(
    ("kind", "exit_code", "message"),
    [
        (
            "errors.CorruptionError",
            82,
            "error KL-CORRUPTION: the \\x1b[31mlake\n       see karmalake errors KL-CORRUPTION",
        ),
        ("ValueError", 70, "ValueError: the \\x1b[31mlake\nerror KL-DEFECT: a bug in karmalake"),
    ],
)
def test_a_command_that_has_failed_is_ended_with_its_error(kind: str, exit_code: int, message: str) -> None:
    """It waits for something else, longer than it may: a supervisor sees no success."""
    with _running(0.1, _AFTER_AN_ERROR.format(kind=kind)) as process:
        assert _line(process) == "stopping"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == exit_code
    assert message in errors
    assert "nothing is lost" not in errors


def test_another_ctrl_c_ends_a_command_that_has_failed_with_its_error() -> None:
    """The same command does not continue from there."""
    with _running(3_600, _AFTER_AN_ERROR.format(kind="errors.CorruptionError")) as process:
        assert _line(process) == "stopping"
        wait_for("the end", lambda: process.send_signal(signal.SIGINT) or process.poll() is not None)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 82
    assert "interrupted" not in errors


def test_another_signal_with_a_handler_is_no_stop() -> None:
    """The first Ctrl-C after it stops the command; another would have interrupted it."""
    with _running(0.1, f"{_HANDLES_ANOTHER}{_IN_PYTHON}") as process:
        assert _line(process) == "handled"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (0, "stopping\n")


def test_another_ctrl_c_ends_it_at_once() -> None:
    """With the exit code of an interruption, and no traceback; another SIGTERM changes nothing."""
    with _running(3_600, _IN_PYTHON) as process:
        process.send_signal(signal.SIGINT)
        assert _line(process) == "stopping"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert errors == "interrupted; what was committed stands, and the same command continues from there\n"
