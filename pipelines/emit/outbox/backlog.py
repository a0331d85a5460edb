"""The backlog of the outbox: it grows while the relay is down or too slow."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select, type_coerce
from sqlalchemy.types import NullType

from pipelines.emit.outbox.database import open_database, translate_errors
from pipelines.emit.outbox.table import OUTBOX, utc_now
from pipelines.errors import ConfigurationError

_TIMESTAMP = type_coerce(OUTBOX.c.timestamp, NullType())
"""The column as the driver returns it: a table that was made otherwise may have any type there, SQLite in any row."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Committed rows that are not acknowledged by the broker or not deleted yet."""

    rows: int
    oldest_age_seconds: float
    """Age of the oldest row by the database's clock; 0 if there are no rows."""


def backlog(connection: Connection) -> Backlog:
    """Measure the backlog. It counts every row: call it every few seconds, not every few milliseconds.

    Raises ConfigurationError, naming the row, if the oldest timestamp is none.
    """
    oldest = func.min(_TIMESTAMP)
    rows, oldest, now = connection.execute(select(func.count(), oldest, utc_now()).select_from(OUTBOX)).one()
    if not rows:
        return Backlog(0, 0.0)
    since = _as_utc(oldest)
    if since is None:
        row = connection.execute(select(OUTBOX.c.sequence).order_by(_TIMESTAMP).limit(1)).scalar()
        raise ConfigurationError(
            f"row {row} of the outbox has {oldest!r} in the column timestamp, where a date and time is needed: correct "
            "the type of the column, or what the service writes there"
        )
    return Backlog(rows, max(0.0, ((_as_utc(now) or since) - since).total_seconds()))


def _as_utc(moment: object) -> datetime | None:
    """Return a moment with its zone, which SQLite has only if a service has written one; None if it is no moment."""
    try:
        found = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC) if isinstance(found, datetime) else None


def measure_backlog(address: str) -> Backlog:
    """Measure the backlog of the database at `address` over a new connection. Raises like `open_database`."""
    with (
        open_database(address) as engine,
        translate_errors(engine, "counting the outbox"),
        engine.connect() as connection,
    ):
        return backlog(connection)
