"""How a relay that found nothing waits: PostgreSQL tells it of a commit at once, any other database is polled.

Notifications are for speed only. A missed one costs the wait, never a row.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any

from sqlalchemy import Engine, text

from pipelines.emit.outbox.database import translated
from pipelines.emit.outbox.table import CHANNEL
from pipelines.errors import TransientError

Alarm = Callable[[threading.Event, float], None]
"""Returns when there may be rows, when the event is set, or after that many seconds; it notices the event in time."""


@contextlib.contextmanager
def alarm(engine: Engine) -> Generator[Alarm]:
    """Yield the best alarm that the database has; on PostgreSQL it holds a connection of its own."""
    if engine.dialect.driver != "psycopg":
        yield _poll
        return
    with translated(engine, "listening to the outbox"), contextlib.ExitStack() as open_until_the_end:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        open_until_the_end.enter_context(connection)
        connection.execute(text(f"LISTEN {CHANNEL}"))
        open_until_the_end.callback(connection.invalidate)  # a connection that listens does not go back to the pool
        yield _listener(engine, connection.connection.driver_connection)


def _poll(stopping: threading.Event, seconds: float) -> None:
    stopping.wait(seconds)


def _listener(engine: Engine, driver_connection: Any) -> Alarm:
    def listen(_stopping: threading.Event, seconds: float) -> None:
        try:
            list(driver_connection.notifies(timeout=seconds, stop_after=1))
        except engine.dialect.loaded_dbapi.Error as error:
            raise TransientError(f"listening to the outbox failed: {error}; check that the database runs") from error

    return listen
