"""A process that outlives whoever started it, and is never confused with another.

Owns starting, recognising and ending one detached process. The process inherits an exclusive lock on a file, so
"does ours still run?" is a question to the kernel: a pid that was given to somebody else, or a reboot, releases
the lock. What runs, and where it listens, is `services.py`'s affair.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import CorruptionError, TransientError
from pipelines.private import private_folder

_POLL_SECONDS = 0.02
_TERM_SECONDS = 1.0
_KILL_SECONDS = 10.0
_LOG_TAIL_LINES = 15
_RUN_DETACHED = '"$@" </dev/null >>"$KARMALAKE_LOG" 2>&1 & echo $!'


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    """Where one process keeps its lock, its state and its log."""

    folder: Path
    name: str

    @property
    def lock(self) -> Path:
        """Locked by the process for as long as it lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def state(self) -> Path:
        """JSON: pid, port, started."""
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.folder / f"{self.name}.log"

    @property
    def previous_log(self) -> Path:
        """What the process before it printed."""
        return self.folder / f"{self.name}.previous.log"


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What is known about a process that was started."""

    pid: int
    port: int
    started: datetime


def launch(files: ProcessFiles, command: Sequence[str], port: int) -> ProcessState:
    """Start `command` in a session of its own and record it; the caller knows that none is running.

    A crash between the start and the record leaves a process that holds the lock without a state file:
    `running` says so.
    """
    with files.lock.open("a") as lock:
        _wait_for_lock(lock.fileno(), files.lock)
        # A shell starts it in the background and ends: the process belongs to nobody here, so it leaves no zombie.
        shell = subprocess.run(  # noqa: S603 # a binary of ours and arguments of ours
            ["/bin/sh", "-c", _RUN_DETACHED, "sh", *command],
            env={"PATH": os.environ.get("PATH", os.defpath), "KARMALAKE_LOG": str(files.log)},
            cwd=files.folder,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
            stdout=subprocess.PIPE,
            check=True,
        )
    state = ProcessState(pid=int(shell.stdout), port=port, started=datetime.now(UTC))
    _write_state(files.state, state)
    return state


def running(files: ProcessFiles) -> ProcessState | None:
    """Return the state of the process if it lives, None if it ended or never was.

    Raises CorruptionError if one lives but its state file is missing or unreadable.
    """
    if not is_locked(files.lock):
        return None
    state = recorded(files)
    if state is None:
        raise CorruptionError(
            f"a {files.name} is running, but {files.state} does not say which: find the process that holds "
            f"{files.lock} (for example with `fuser {files.lock}`), end it and start again"
        )
    return state


def recorded(files: ProcessFiles) -> ProcessState | None:
    """Return what was recorded last, whether or not it still runs; None without a readable record."""
    try:
        values = json.loads(files.state.read_text(encoding="utf-8"))
        return ProcessState(int(values["pid"]), int(values["port"]), datetime.fromisoformat(values["started"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def terminate(files: ProcessFiles) -> bool:
    """End the process with SIGTERM, after a second with SIGKILL; return whether one was running.

    Only ever signals ours. The second is short because nothing is saved: the broker would wait for its clients.
    """
    state = running(files)
    if state is not None:
        for signal_number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal_number)
            if wait_until(lambda: not is_locked(files.lock), seconds):
                break
        else:
            raise TransientError(f"the {files.name} (pid {state.pid}) does not end; end it by hand")
    files.state.unlink(missing_ok=True)
    return state is not None


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock; does not disturb it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def exclusive(path: Path) -> Generator[None]:
    """Hold a lock that a crash releases; waits for another holder, TransientError after 60 s."""
    private_folder(path.parent)
    with path.open("a") as lock:
        _wait_for_lock(lock.fileno(), path)
        yield


def wait_until(predicate: Callable[[], bool], seconds: float) -> bool:
    """Ask `predicate` until it holds or the time is up; return what it said last."""
    pause = threading.Event()
    for _ in range(int(seconds / _POLL_SECONDS)):
        if predicate():
            return True
        pause.wait(_POLL_SECONDS)
    return predicate()


def log_tail(files: ProcessFiles) -> str:
    """Return the last lines that the process printed."""
    try:
        lines = files.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join(lines[-_LOG_TAIL_LINES:]) or "(nothing was printed)"


def _wait_for_lock(descriptor: int, path: Path) -> None:
    def locked() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    if not wait_until(locked, 60.0):
        raise TransientError(f"another process has held {path} for a minute: end it, or try again when it is done")


def _write_state(path: Path, state: ProcessState) -> None:
    values = {"pid": state.pid, "port": state.port, "started": state.started.isoformat()}
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.replace(path)
