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
from contextlib import suppress
from typing import NoReturn

from pipelines.errors import INTERRUPTED

INTERRUPTED_MESSAGE = "interrupted; what was committed stands, and the same command continues from there"

_STOPPING = (signal.SIGTERM, signal.SIGINT)


class Stopping(threading.Event):
    """Is set by SIGTERM and Ctrl-C; the process ends within `seconds` of the first one.

    The default is half of what Docker allows before it kills. `karmalake notify` adds `notify.stop_seconds` (10 by
    default), and then needs longer than Docker's 10 s.
    """

    seconds = 5.0


def stop_on_signals() -> Stopping:
    """Return an event that SIGTERM and Ctrl-C set from now on; from that moment the process has `seconds` to end.

    What is not done by then, such as a first rebuild or a request without a response, is left to the next start; the
    exit code is 0. Another Ctrl-C ends the process at once, with the exit code of an interruption. Another SIGTERM
    changes nothing: some supervisors send two.

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
                _end(INTERRUPTED_MESSAGE, INTERRUPTED.exit_code)
    _end(f"stopped; what took longer than {stopping.seconds:g} s is left to the next start, and nothing is lost", 0)


def _end(message: str, exit_code: int) -> NoReturn:
    """End the process now, with a message unless that would block or fail."""
    try:
        _, writable, _ = select.select([], [sys.stderr], [], 0)
        if writable:
            os.write(sys.stderr.fileno(), f"{message}\n".encode())
    finally:
        os._exit(exit_code)
