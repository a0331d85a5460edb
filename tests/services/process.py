"""A server process of a test: start it and wait until it is ready, then stop, kill, pause or restart it.

Owns the process and its log; the other modules define the command and the data.
"""

import atexit
import contextlib
import functools
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import psutil

from tests.services.reaper import kill_tree, suspend_tree
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_LOG_TAIL_LINES = 40
_DUMP_SECONDS = 5.0
_DIAGNOSIS_CHARS = 60_000

Child = TypeVar("Child", "subprocess.Popen[str]", "subprocess.Popen[bytes]")

RUNNING: set["Server"] = set()
"""The running servers of this test process."""


@contextlib.contextmanager
def ended(child: Child) -> Generator[Child]:
    """Yield a process that is killed at the end of the block; without that, a failing test would wait for it."""
    with child:
        try:
            yield child
        finally:
            child.kill()


class Server:
    """A server that prints `ready_line` when it accepts connections.

    As a context manager it is started on the way in and killed on the way out; after an exception the end of its
    log goes to stderr, where pytest shows it.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, ready_line: str, user: str | None = None) -> None:
        self.name = name
        self._command = list(command)
        self._log = log
        self._ready_line = ready_line
        self._user = user
        self._group = pwd.getpwnam(user).pw_gid if user else None
        self._stop_signal = signal.SIGTERM
        self._log_start = 0
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            sys.stderr.write(self.log_tail())
        self.kill()

    @property
    def pid(self) -> int:
        """The id of the server's process, or of the first of its processes."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped or killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start the server with its data and port, and wait until it is ready."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start the process without waiting."""
        assert self._process is None, f"{self.name} is running already"
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = self._started(log)
        _notify_reaper("+", self._process.pid)
        RUNNING.add(self)

    def _started(self, log: IO[bytes]) -> "subprocess.Popen[Any]":
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=self._user,
            group=self._group,
            extra_groups=[] if self._user else None,
        )

    def prepare(self, command: Sequence[str], folder: Path, seconds: float) -> None:
        """Run a command that initializes the data, as the user of the server."""
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            timeout=seconds,
            user=self._user,
            group=self._group,
            extra_groups=[] if self._user else None,
            cwd=folder,
        )

    def wait_until_ready(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Return when the server accepts connections; AssertionError with the end of its log if it does not."""
        try:
            ready = wait_for(f"{self.name} to print {self._ready_line!r}", self._is_ready_or_dead, seconds)
        except AssertionError as error:
            error.add_note(self.log_tail())
            self.kill()
            raise
        if ready == "dead":
            self._forget()
            raise AssertionError(f"{self.name} ended while starting\n{self.log_tail()}")

    def stop(self) -> None:
        """Stop the server gracefully.

        One that does not stop is killed, and AssertionError says what it was doing: a killed one leaves other data. A
        broker, say, recovers its logs when it starts again, and truncates a damaged one.
        """
        assert self._process is not None, f"{self.name} is not running"
        self.resume()
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            diagnosis = self._diagnosis()
            self.kill()
            raise AssertionError(diagnosis) from None
        self._forget()

    def _diagnosis(self) -> str:
        """Return the state of the process, its signals included, and its log, to which a JVM adds its threads."""
        assert self._process is not None
        state = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        if Path(self._command[0]).name == "java":
            self._process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_DUMP_SECONDS)
        log = self._log.read_text(encoding="utf-8", errors="replace")
        return f"--- {self.name} did not stop in {PATIENCE_SECONDS:g} s ---\n{state}{log[-_DIAGNOSIS_CHARS:]}\n"

    def kill(self) -> None:
        """Kill the server with SIGKILL; does nothing if it is not running."""
        if self._process is None:
            return
        kill_tree(self.pid)
        self._process.wait(PATIENCE_SECONDS)
        self._forget()

    def restart(self) -> None:
        """Stop the server and start it on the same data and port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Pause the server with SIGSTOP and wait until it is: its connections stay open, but nothing responds.

        A thread on another processor goes on for a moment, and may still answer a request.
        """
        tree = suspend_tree(self.pid)
        wait_for(f"{self.name} to pause", lambda: all(map(_is_paused, tree)))

    def resume(self) -> None:
        """Resume a paused server."""
        for process in reversed(suspend_tree(self.pid)):
            process.resume()

    def log_tail(self) -> str:
        """Return the last lines that the server printed, under a heading."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.exists() else []
        return "\n".join([f"--- end of the log of {self.name} ---", *lines[-_LOG_TAIL_LINES:], ""])

    def _is_ready_or_dead(self) -> str | None:
        assert self._process is not None
        ended = self._process.poll() is not None
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            if self._ready_line.encode() in log.read():
                return "ready"
        return "dead" if ended else None

    def _forget(self) -> None:
        assert self._process is not None
        _notify_reaper("-", self._process.pid)
        RUNNING.discard(self)
        self._process = None


def _is_paused(process: psutil.Process) -> bool:
    """Tell whether every thread of a process is stopped, or has ended."""
    states = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    try:
        return all(psutil.Process(thread.id).status() in states for thread in process.threads())
    except psutil.NoSuchProcess:
        return not process.is_running()  # if only a thread ended in between, look again


def _notify_reaper(sign: str, pid: int) -> None:
    _reaper().write(f"{sign}{pid}\n".encode())
    _reaper().flush()


@functools.cache
def _reaper() -> IO[bytes]:
    script = Path(__file__).with_name("reaper.py")
    process = subprocess.Popen([sys.executable, "-I", str(script)], stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    atexit.register(process.communicate)
    return process.stdin


def unprivileged_user(preferred: str) -> str | None:
    """Return the user for a server that refuses to run as root; None if we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return preferred if preferred in names else "nobody"
