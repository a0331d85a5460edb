"""A process that outlives whoever started it, and is never confused with another.

Owns starting, recognising and ending one detached process. The process inherits an exclusive lock on a file, so
"does ours still run?" is a question to the kernel: a pid that was given to somebody else, or a reboot, releases
the lock. What runs, and where it listens, is `services.py`'s affair.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.boundary.file_lock import exclusive_lock, is_locked
from pipelines.boundary.private_files import private_folder
from pipelines.errors import CorruptionError, TransientError

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
    with exclusive(files.lock) as lock:
        # A shell starts it in the background and ends: the process belongs to nobody here, so it leaves no zombie.
        shell = subprocess.run(  # noqa: S603 # a binary of ours and arguments of ours
            ["/bin/sh", "-c", _RUN_DETACHED, "sh", *command],
            env={"PATH": os.environ.get("PATH", os.defpath), "KARMALAKE_LOG": str(files.log)},
            cwd=files.folder,
            pass_fds=(lock,),
            start_new_session=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        os.ftruncate(lock, 0)  # from here on the process holds it
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


@contextlib.contextmanager
def exclusive(path: Path) -> Generator[int]:
    """Hold a lock that a crash releases; yields its descriptor. Raises TransientError when it is held for a minute."""
    private_folder(path.parent)
    with contextlib.ExitStack() as held:
        try:
            descriptor = held.enter_context(exclusive_lock(path))
        except TimeoutError as error:
            raise TransientError(f"{error}: end it, or try again when it is done") from None
        yield descriptor


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


def _write_state(path: Path, state: ProcessState) -> None:
    values = {"pid": state.pid, "port": state.port, "started": state.started.isoformat()}
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.replace(path)
