"""The ingester in a process of its own: `ingest` has the contract of `ingester.ingest`.

Threads of one process share one interpreter lock, so at low rates too a refresh and ingest wait for each other. The
worker (`ingester_worker.py`) is a child of the process that serves, because the child may end at any moment: what holds
the lock of the warehouse is the parent. Both ends of a socket:

- the parent sends `Task`, and later that the worker should stop; the end of the connection without that means that the
  parent has died, and the worker exits at once;
- the worker sends a `Report` for each call of a callback and for each log record, and as the last one how it ended.
  The parent logs with its own configuration, so that there is one.

The worker has a session of its own and ignores SIGINT and SIGTERM, which terminals and supervisors send to a whole
group of processes: it stops when its parent says so.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.best_effort import best_effort
from pipelines.errors import TransientError
from pipelines.retries import OnIteration
from pipelines.settings import Settings

if TYPE_CHECKING:
    from pipelines.dlq import OnProgress
    from pipelines.ingester import OnCommit, OnHalted

STOP = "stop"
"""The message that tells the worker to finish the current batch, and to end."""
_LOGGER = "pipelines"
_workers: list["subprocess.Popen[bytes]"] = []
"""The running worker, if any."""
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Task(NamedTuple):
    """What the worker has to know, as the parent has loaded it."""

    settings: Settings
    log_level: int
    """The lowest level that the parent logs."""


class Report(NamedTuple):
    """A call of a callback of `ingest`; `kind` is its name without `on_`, or `log`, or `end`."""

    kind: str
    arguments: tuple[Any, ...]


class Outcome(NamedTuple):
    """How the worker ended: the argument of its last report."""

    error: BaseException | None
    traceback: str = ""


def ingest(
    settings: Settings,
    stopping: threading.Event,
    on_commit: "OnCommit",
    on_iteration: OnIteration,
    on_halted: "OnHalted",
    on_copied: "OnProgress",
) -> None:
    """Do what `ingester.ingest` does in a child process, until `stopping` is set; it is set on return.

    Callbacks run in this thread. Raises the error that ended the child, and TransientError if it was killed: what it
    had not committed is read again at the next start. If this process dies, the child ends at once.
    """
    receivers = {
        "commit": best_effort(on_commit, "reporting a commit"),
        "iteration": best_effort(on_iteration, "reporting a turn"),
        "halted": best_effort(on_halted, "reporting what is halted"),
        "copied": best_effort(on_copied, "reporting copies of dead letters"),
        "log": _log,
    }
    with _worker(Task(settings, logging.getLogger(_LOGGER).getEffectiveLevel())) as (process, connection):
        with _passed_on(stopping, connection):
            outcome = _receive_until_end(connection, receivers)
            was_stopped = stopping.is_set()
        code = process.wait()
    _raise(outcome or _killed(code, stopped=was_stopped))


@contextmanager
def _worker(task: Task) -> Generator[tuple["subprocess.Popen[bytes]", Connection]]:
    """Start the worker with its task; on leaving, close the connection, which ends it, and wait for it."""
    ours, theirs = Pipe()
    with ours:
        with theirs:
            process = _start(theirs)
        _workers.append(process)
        try:
            with suppress(OSError):  # it died; its exit code says how
                ours.send(task)
            yield process, ours
        finally:
            ours.close()
            process.wait()
            _workers.remove(process)


def worker_pid() -> int:
    """Return the process id of the running worker; 0 without one."""
    return _workers[-1].pid if _workers else 0


def _start(connection: Connection) -> "subprocess.Popen[bytes]":
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.ingester_worker"],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=connection.fileno(),
            start_new_session=True,
        )
    except OSError as error:
        raise TransientError(f"the process that ingests cannot be started: {error}") from None


@contextmanager
def _passed_on(stopping: threading.Event, connection: Connection) -> Generator[None]:
    """Tell the worker to stop when `stopping` is set; on leaving, set it."""

    def pass_on() -> None:
        stopping.wait()
        with suppress(OSError):  # the worker has ended
            connection.send(STOP)

    with ThreadPoolExecutor(1, "stopping") as pool:
        pool.submit(pass_on)
        try:
            yield
        finally:
            stopping.set()


def _receive_until_end(connection: Connection, receivers: Mapping[str, Callable[..., object]]) -> Outcome | None:
    """Pass reports on; return the outcome, or None if the worker ended without one."""
    with suppress(EOFError, ConnectionResetError):
        while (report := connection.recv()).kind != "end":
            receivers[report.kind](*report.arguments)
        return report.arguments[0]
    return None


def _log(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _killed(code: int, *, stopped: bool) -> Outcome:
    """Return the outcome of a worker that did not tell any."""
    if stopped and -code in _STOP_SIGNALS:  # sent to all processes before this one ignored it: nothing was begun
        return Outcome(None)
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return Outcome(
        TransientError(
            f"the process that ingests was ended {how}; what was committed stands: start again. The kernel kills a "
            "process (SIGKILL) when memory runs out"
        )
    )


def _raise(outcome: Outcome) -> None:
    if outcome.error is not None:
        if outcome.traceback:
            outcome.error.add_note(f"In the process that ingests:\n{outcome.traceback}")
        raise outcome.error
