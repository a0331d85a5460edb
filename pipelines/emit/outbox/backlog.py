"""The backlog of the outbox: it grows while the relay is down or too slow."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from pipelines.emit.outbox.database import open_database, translate_errors
from pipelines.emit.outbox.table import OUTBOX, utc_now


@dataclass(frozen=True, slots=True)
class Backlog:
    """Committed rows that are not acknowledged by the broker or not deleted yet."""

    rows: int
    oldest_age_seconds: float
    """Age of the oldest row by the database's clock; 0 if there are no rows."""


def backlog(connection: Connection) -> Backlog:
    """Measure the backlog. It counts every row: call it every few seconds, not every few milliseconds."""
    oldest = func.min(OUTBOX.c.timestamp)
    rows, oldest, now = connection.execute(select(func.count(), oldest, utc_now()).select_from(OUTBOX)).one()
    return Backlog(rows, max(0.0, (_as_utc(now) - _as_utc(oldest)).total_seconds()) if rows else 0.0)


def _as_utc(moment: datetime) -> datetime:
    """Return a moment with its zone: SQLite has none, unless a service has written one."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def measure_backlog(address: str) -> Backlog:
    """Measure the backlog of the database at `address` over a new connection. Raises like `open_database`."""
    with (
        open_database(address) as engine,
        translate_errors(engine, "counting the outbox"),
        engine.connect() as connection,
    ):
        return backlog(connection)
