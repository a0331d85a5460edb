"""The process that ingests for `karmalake stream`; `ingester_process.py` starts it, and describes the connection."""

from pipelines.ingest.malloc import tune_malloc

tune_malloc()  # before any other import, as the command does

import logging  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
from functools import partial  # noqa: E402
from multiprocessing.connection import Connection  # noqa: E402
from typing import Any  # noqa: E402

from pipelines.errors import TransientError, one_line  # noqa: E402
from pipelines.ingester import ingest  # noqa: E402
from pipelines.ingester_process import Outcome, Report, Task  # noqa: E402

_CALLBACKS = ("commit", "iteration", "halted", "copied")
"""In the order of the parameters of `ingest`."""


def main() -> None:
    """Ingest as the parent says, until it says to stop."""
    _ignore_signals()
    connection = _take_over_input()
    try:
        task: Task = connection.recv()
    except EOFError:  # the parent died while this process started
        os._exit(TransientError.exit_code)
    reports, stopping = _Reports(connection), threading.Event()
    _log_to(reports, task.log_level)
    threading.Thread(target=_obey, args=(connection, stopping), daemon=True).start()
    reports.send("end", _run(task, stopping, reports))
    os._exit(0)  # all is closed; the interpreter's own end would print what DuckDB's bindings leave beside a thread


def _ignore_signals() -> None:
    """Ignore what is sent to a whole group: by handlers, since processes that this one starts do not inherit those."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)


def _take_over_input() -> Connection:
    """Return the connection to the parent; standard input is empty from now on."""
    connection = Connection(os.dup(0))
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return connection


def _obey(connection: Connection, stopping: threading.Event) -> None:
    """Set `stopping` when the parent says so; exit when it has died, which is as safe as being killed."""
    try:
        while True:
            connection.recv()
            stopping.set()
    except (EOFError, OSError):
        os._exit(TransientError.exit_code)


def _run(task: Task, stopping: threading.Event, reports: "_Reports") -> Outcome:
    try:
        ingest(task.settings, stopping, *(partial(reports.send, kind) for kind in _CALLBACKS))
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        return Outcome(_portable(error), traceback.format_exc())
    return Outcome(None)


class _Reports:
    """Sends reports to the parent, from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()

    def send(self, kind: str, *arguments: Any) -> None:
        """Send a report; wait while the parent has many to read. If it has died, exit."""
        message = pickle.dumps(Report(kind, arguments))
        try:
            with self._sending:
                self._connection.send_bytes(message)
        except OSError:
            os._exit(TransientError.exit_code)


class _ParentHandler(logging.Handler):
    """Sends log records to the parent."""

    def __init__(self, reports: _Reports) -> None:
        super().__init__()
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. As with every handler, an error in it (arguments that do not fit) is shown, and not raised."""
        try:
            self._reports.send("log", _portable_record(record))
        except Exception:  # noqa: BLE001 - as in the handlers of the standard library
            self.handleError(record)


def _log_to(reports: _Reports, level: int) -> None:
    """Send log records to the parent."""
    logging.basicConfig(level=level, handlers=[_ParentHandler(reports)], force=True)


def _portable_record(record: logging.LogRecord) -> logging.LogRecord:
    """Return a log record with text in place of what another process may be unable to read: arguments, an error."""
    sent = logging.LogRecord(
        record.name, record.levelno, record.pathname, record.lineno, record.getMessage(), None, None
    )
    sent.created, sent.msecs, sent.threadName = record.created, record.msecs, record.threadName
    if record.exc_info is not None:
        sent.exc_text = logging.Formatter().formatException(record.exc_info)
    return sent


def _portable(error: BaseException) -> BaseException:
    """Return an error, or its text if it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever the class of another library raises
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")
    return error


if __name__ == "__main__":
    main()
