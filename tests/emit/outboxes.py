"""Databases of services for the tests of the outbox, with the table in them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import URL, Engine, MetaData, create_engine, make_url, text

from pipelines.emit.outbox import Event, outbox_table
from tests.services.mariadb_server import MariadbServer
from tests.services.postgres_server import PostgresServer

TIME = datetime(2024, 3, 1, 12, 30, 1, 123456, tzinfo=UTC)


def event(number: int, user_id: str = "ann") -> Event:
    """Return a different event for each number, ordered by time."""
    return Event(f"e{number}", user_id, "DriverRated", TIME + timedelta(microseconds=number), {"rating": "5"})


@contextmanager
def disposed(url: URL) -> Iterator[Engine]:
    """Yield an engine whose connections are closed afterwards."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def sqlite_url(folder: Path) -> URL:
    """Return the address of an SQLite file that does not exist yet."""
    return URL.create("sqlite", database=str(folder / f"service-{uuid.uuid4().hex[:8]}.db"))


@contextmanager
def postgres_database(server: PostgresServer, encoding: str = "UTF8") -> Iterator[URL]:
    """Yield the address of a new, empty database; it is dropped afterwards, even if clients are still connected."""
    url = make_url(server.dsn).set(drivername="postgresql+psycopg")
    name = f"service_{uuid.uuid4().hex[:8]}"
    with disposed(url) as engine, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"))
        try:
            yield url.set(database=name)
        finally:
            admin.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def mariadb_database(server: MariadbServer) -> Iterator[URL]:
    """Yield the address of a new, empty database; it is dropped afterwards."""
    url, name = make_url(server.url), f"service_{uuid.uuid4().hex[:8]}"
    with disposed(url) as engine, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text(f"CREATE DATABASE {name}"))
        try:
            yield url.set(database=name)
        finally:
            admin.execute(text(f"DROP DATABASE {name}"))


def create_outbox(engine: Engine) -> None:
    """Create the table as a service does."""
    metadata = MetaData()
    outbox_table(metadata)
    metadata.create_all(engine)
