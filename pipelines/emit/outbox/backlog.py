"""What waits in the outbox: the measure of a relay that is down or behind."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from pipelines.emit.outbox.database import open_database, translated
from pipelines.emit.outbox.table import OUTBOX, utc_now


@dataclass(frozen=True, slots=True)
class Backlog:
    """Committed rows that are not acknowledged by the broker, or not yet deleted."""

    rows: int
    oldest_age_seconds: float
    """Since the oldest of them was added, by the database's clock; 0 if there is none."""


def backlog(connection: Connection) -> Backlog:
    """Measure the outbox; counts every row, so ask every few seconds rather than every few milliseconds."""
    oldest = func.min(OUTBOX.c.timestamp)
    rows, oldest, now = connection.execute(select(func.count(), oldest, utc_now()).select_from(OUTBOX)).one()
    return Backlog(rows, max(0.0, (now - oldest).total_seconds()) if rows else 0.0)


def measure_backlog(address: str) -> Backlog:
    """Measure the outbox of the database at `address`, over a connection of its own; errors as in `open_database`."""
    with open_database(address) as engine, translated(engine, "counting the outbox"), engine.connect() as connection:
        return backlog(connection)
