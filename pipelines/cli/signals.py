"""How the long-lived commands are stopped."""

import signal
import threading


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set from now on.

    Call it before the slow imports of a command: in a container its process may have the id 1, and the kernel drops a
    signal to that process that it does not handle.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    return stopping
