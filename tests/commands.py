"""The command line, and other Python programs, in processes of their own without the seconds of a start.

`Started` is `subprocess.Popen` and `run` is `subprocess.run`, both with text; `Program` is a server that is a program.
Each is a process with its own streams, environment, folder, signals and exit code, forked from a server that has
imported the slow libraries (`tests/command_server.py`). Tests about the start itself, or about memory, start an
interpreter instead.
"""

import atexit
import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from tests.services.process import Server
from tests.services.waiting import PATIENCE_SECONDS

KARMALAKE = ("-c", "from pipelines.cli import main; main()")
"""What follows `python` to run the command."""
_REPOSITORY = Path(__file__).resolve().parents[1]
_SET_CHILD_SUBREAPER = 36
"""The option of prctl(2) by which a process becomes the parent of orphans among its descendants."""
_ASKING = threading.Lock()


class Started(subprocess.Popen[str]):
    """A program that was started: `-c CODE ...` or `-m MODULE ...`; Popen has the options."""

    def __init__(self, program: Sequence[str | Path], **options: Any) -> None:
        super().__init__([str(argument) for argument in program], text=True, **options)

    def _execute_child(self, args: list[str], *private: Any) -> None:
        """Start the program as the server's child and adopt it; called by Popen with its options by position."""
        cwd, environment, pipes, session = private[4], private[5], private[9:15], private[20]
        request = {
            "arguments": args,
            "cwd": str(cwd or Path.cwd()),
            "environment": {name: str(value) for name, value in (environment or os.environ).items()},
            "session": bool(session),
            "umask": _umask(),
        }
        streams = [number if file == -1 else file for number, file in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.pid = _fork(json.dumps(request).encode(), streams)
        self._child_created = True
        cast("Any", self)._close_pipe_fds(*pipes)


class Program(Server):
    """A server that is a Python program, `-c CODE ...` or `-m MODULE ...`, with variables of its environment."""

    def __init__(
        self, name: str, program: Sequence[str], variables: Mapping[str, str], log: Path, ready_line: str
    ) -> None:
        super().__init__(name, program, log, ready_line)
        self._environment = os.environ | variables

    def _started(self, log: IO[bytes]) -> Started:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        return Started(self._command, env=self._environment, start_new_session=True, **streams)


def _umask() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask:"))
    return int(line.split()[1], 8)


def run(
    program: Sequence[str | Path], *, timeout: float = PATIENCE_SECONDS, check: bool = False, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end with captured output; kill it after `timeout` seconds, or on another error.

    Raises subprocess.CalledProcessError for an exit code other than 0 if `check`.
    """
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Started(program, **(output | options)) as process:
        try:
            captured = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess([str(argument) for argument in program], process.returncode, *captured)
    if check:
        done.check_returncode()
    return done


def _fork(request: bytes, streams: Sequence[int]) -> int:
    """Return the id of a new child of this process, forked by the server."""
    with _ASKING:
        server = _server()
        _adopt_orphans(adopt=True)
        try:
            socket.send_fds(server, [request], streams)
            return int(server.recv(100))
        finally:
            _adopt_orphans(adopt=False)


def _adopt_orphans(*, adopt: bool) -> None:
    assert ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) == 0


@functools.cache
def _server() -> socket.socket:
    """Return the connection to this process's server, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.command_server", str(theirs.fileno())]
        server = subprocess.Popen(command, cwd=_REPOSITORY, pass_fds=[theirs.fileno()])
    atexit.register(_end, server, ours)
    return ours


def _end(server: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
    connection.close()
    server.wait(PATIENCE_SECONDS)
