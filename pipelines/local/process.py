"""A detached process that outlives its parent and is reliably identified.

Owns starting, identifying and ending one process. The process inherits an exclusive lock on a file, so the kernel
answers whether it still runs: its end or a reboot releases the lock, and a reused pid does not hold it. `services.py`
decides what runs and where it listens.
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
from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import CorruptionError, TransientError

_POLL_SECONDS = 0.02
_TERM_SECONDS = 1.0
_KILL_SECONDS = 10.0
_LOG_TAIL_LINES = 15
_RUN_DETACHED = '"$@" </dev/null >>"$KARMALAKE_LOG" 2>&1 & echo $!'


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    """The lock, state and log files of one process."""

    folder: Path
    name: str

    @property
    def lock(self) -> Path:
        """Locked by the process while it lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def state(self) -> Path:
        """JSON: pid, port, started."""
        return self.folder / f"{self.name}.json"

    @property
    def stopped(self) -> Path:
        """The state of the process that was ended last."""
        return self.folder / f"{self.name}.stopped.json"

    @property
    def log(self) -> Path:
        """Output of the process."""
        return self.folder / f"{self.name}.log"

    @property
    def previous_log(self) -> Path:
        """Output of the previous process."""
        return self.folder / f"{self.name}.previous.log"


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The recorded state of a process."""

    pid: int
    port: int
    started: datetime


def launch(files: ProcessFiles, command: Sequence[str], port: int) -> ProcessState:
    """Start `command` in a new session and record its state; the caller ensures that none is running.

    A crash between start and record leaves a process that holds the lock without a state file: `find_running` raises
    CorruptionError.
    """
    with hold_lock(files.lock) as lock:
        # A shell starts it in the background and exits: the process is not our child, so it leaves no zombie.
        shell = subprocess.run(  # noqa: S603 # a verified binary and trusted arguments
            ["/bin/sh", "-c", _RUN_DETACHED, "sh", *command],
            env={"PATH": os.environ.get("PATH", os.defpath), "KARMALAKE_LOG": str(files.log)},
            cwd=files.folder,
            pass_fds=(lock,),
            start_new_session=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        os.ftruncate(lock, 0)  # from now on the process holds the lock
    state = ProcessState(pid=int(shell.stdout), port=port, started=datetime.now(UTC))
    _write_state(files.state, state)
    return state


def find_running(files: ProcessFiles) -> ProcessState | None:
    """Return the state of the process if it is running, else None.

    Raises CorruptionError if it is running but its state file is missing or unreadable.
    """
    if not is_locked(files.lock):
        return None
    state = read_last_state(files)
    if state is None:
        raise CorruptionError(
            f"a {files.name} is running, but {files.state} is missing or unreadable: find the process that holds "
            f"{files.lock} (for example with `fuser {files.lock}`), end it and start again"
        )
    return state


def read_last_state(files: ProcessFiles) -> ProcessState | None:
    """Return the last recorded state of a process that was not ended, whether it runs or not; None without one."""
    return _read_state(files.state)


def last_port(files: ProcessFiles) -> int:
    """Return the port of the process that ran last, which clients may know; 0 if there was none."""
    last = read_last_state(files) or _read_state(files.stopped)
    return 0 if last is None else last.port


def _read_state(path: Path) -> ProcessState | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return ProcessState(int(values["pid"]), int(values["port"]), datetime.fromisoformat(values["started"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def terminate(files: ProcessFiles) -> bool:
    """End the process with SIGTERM, after a second with SIGKILL; return whether it was running.

    Signals only the process that holds the lock. The wait is short because nothing is saved on exit, and the broker
    would wait for its clients.
    """
    state = find_running(files)
    if state is not None:
        for signal_number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal_number)
            if wait_until(lambda: not is_locked(files.lock), seconds):
                break
        else:
            raise TransientError(f"the {files.name} (pid {state.pid}) did not end after SIGKILL; end it manually")
    with contextlib.suppress(FileNotFoundError):
        files.state.replace(files.stopped)
    return state is not None


@contextlib.contextmanager
def hold_lock(path: Path) -> Generator[int]:
    """Hold a lock that a crash releases; yield its descriptor. Raises TransientError if it is locked for a minute."""
    make_private_dir(path.parent)
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(exclusive_lock(path))
        except TimeoutError as error:
            raise TransientError(f"{error}: end it, or try again when it is done") from None
        yield descriptor


def wait_until(predicate: Callable[[], bool], seconds: float) -> bool:
    """Poll `predicate` until it is true or the time is up; return its last result."""
    pause = threading.Event()
    for _ in range(int(seconds / _POLL_SECONDS)):
        if predicate():
            return True
        pause.wait(_POLL_SECONDS)
    return predicate()


def log_tail(files: ProcessFiles) -> str:
    """Return the last lines of the log."""
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
