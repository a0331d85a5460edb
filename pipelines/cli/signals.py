"""How the long-lived commands are stopped: in order, or at once where that takes too long.

A command that is ended before it is done leaves what a crash leaves, and the next start continues from there.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from pipelines.boundary.stopping import Stopping
from pipelines.boundary.text import escape_lines
from pipelines.cli.failures import INTERRUPTED_MESSAGE, describe_failure
from pipelines.errors import DEFECT, INTERRUPTED, explain_command

_STOPPING = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals() -> Stopping:
    """Return an event that SIGTERM and Ctrl-C set from now on; from that moment the process has `seconds` to end.

    What is not done by then, such as a first rebuild or a request without a response, is left to the next start; the
    exit code is 0. Another Ctrl-C ends the process at once, with the exit code of an interruption. If an error was
    ending the process (`Stopping.error`), it is ended with the message and the exit code of the error instead. Another
    SIGTERM changes nothing: some supervisors send two.

    A thread does it, woken by the signal itself: Python runs handlers in the main thread, which may be in a long call
    of a library, or hold the lock of the event.
    Call it before the slow imports of a command: in a container its process may have the id 1, and the kernel drops a
    signal to that process that it does not handle.
    """
    stopping = Stopping()
    received, sending = socket.socketpair()
    sending.settimeout(0)  # a full buffer must not block the handler
    signal.set_wakeup_fd(sending.detach(), warn_on_full_buffer=False)
    for number in _STOPPING:
        signal.signal(number, lambda _number, _frame: None)
    threading.Thread(target=_end_on_signals, args=(received, stopping), name="signals", daemon=True).start()
    return stopping


def _end_on_signals(received: socket.socket, stopping: Stopping) -> None:
    while received.recv(1)[0] not in _STOPPING:
        pass  # Python writes the number of every signal that has a handler
    stopping.set()
    begun = time.monotonic()
    while (left := begun + stopping.seconds - time.monotonic()) > 0:
        received.settimeout(left)
        with suppress(TimeoutError):
            if received.recv(1)[0] == signal.SIGINT:
                _end(stopping.error, INTERRUPTED_MESSAGE, INTERRUPTED.exit_code)
    message = f"stopped; what took longer than {stopping.seconds:g} s is left to the next start, and nothing is lost"
    _end(stopping.error, message, 0)


def _end(error: BaseException | None, message: str, exit_code: int) -> NoReturn:
    """End the process now: by an error, if there is one, else with a message and an exit code.

    What is written is left out if that would block or fail.
    """
    try:
        if error is not None:
            exit_code, message = _failure(error)
        _, writable, _ = select.select([], [sys.stderr], [], 0)
        if writable:
            os.write(sys.stderr.fileno(), f"{message}\n".encode()[-select.PIPE_BUF :])
    finally:
        os._exit(exit_code)


def _failure(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and what a command prints of it."""
    message, status = describe_failure(error)
    trace = "".join(traceback.format_exception(error)) if status == DEFECT else ""
    text = f"{trace}error {status.code}: {message}\n       see {explain_command(status.code)}"
    return status.exit_code, escape_lines(text)
