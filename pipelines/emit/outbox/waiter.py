"""Waiting for outbox rows: PostgreSQL notifies the relay of a commit, other databases are polled.

Notifications only reduce latency. A missed one delays a row until the next poll.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any

from sqlalchemy import Engine, text

from pipelines.emit.outbox.database import translate_errors
from pipelines.emit.outbox.table import CHANNEL
from pipelines.errors import TransientError

Waiter = Callable[[threading.Event, float], None]
"""Blocks until there may be rows or the given seconds have passed; returns early if the event is set while polling."""


@contextlib.contextmanager
def open_waiter(engine: Engine) -> Generator[Waiter]:
    """Yield the fastest waiter that the database supports; on PostgreSQL it holds a connection."""
    if engine.dialect.driver != "psycopg":
        yield _poll
        return
    with translate_errors(engine, "listening to the outbox"), contextlib.ExitStack() as stack:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        stack.enter_context(connection)
        connection.execute(text(f"LISTEN {CHANNEL}"))
        stack.callback(connection.invalidate)  # a listening connection must not return to the pool
        yield _listener(engine, connection.connection.driver_connection)


def _poll(stopping: threading.Event, seconds: float) -> None:
    stopping.wait(seconds)


def _listener(engine: Engine, driver_connection: Any) -> Waiter:
    def listen(_stopping: threading.Event, seconds: float) -> None:
        try:
            list(driver_connection.notifies(timeout=seconds, stop_after=1))
        except engine.dialect.loaded_dbapi.Error as error:
            raise TransientError(f"listening to the outbox failed: {error}; check that the database runs") from error

    return listen
