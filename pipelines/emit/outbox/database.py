"""The service's database as the relay uses it: opened by URL, its errors translated to karmalake's."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, exc, inspect, make_url

from pipelines.boundary.extras import extra
from pipelines.emit.outbox.table import OUTBOX
from pipelines.errors import ConfigurationError, TransientError

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "sqlite": "sqlite",
}
"""The driver for each kind of database; the service's URL may name another one, perhaps asynchronous."""
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql"}
_CONNECT_SECONDS = 10


@contextlib.contextmanager
def open_database(address: str) -> Generator[Engine]:
    """Yield an engine for the database at `address`, which has an outbox; dispose of the engine at the end.

    Raises ConfigurationError for an invalid address, a driver that is not installed or a missing table, TransientError
    if the database does not answer. No message contains the password.
    """
    url = _parse_address(address)
    # READ COMMITTED: each statement sees what was committed before it, and on MySQL none locks gaps.
    isolation = {} if url.get_backend_name() == "sqlite" else {"isolation_level": "READ COMMITTED"}
    with extra(_EXTRAS.get(url.get_driver_name(), "outbox"), f"an outbox in {url.get_backend_name()}"):
        engine = create_engine(url, connect_args=_connect_arguments(url), pool_pre_ping=True, **isolation)
    try:
        _require_outbox(engine)
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def translate_errors(engine: Engine, doing: str) -> Generator[None]:
    """Translate database errors while `doing` into TransientError (retry) or ConfigurationError (fix it first)."""
    where = f"{doing} at {engine.url.render_as_string(hide_password=True)}"
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
        message = f"{where} failed: {_describe(error)}; check the address and that the database runs, then try again"
        raise TransientError(message) from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise TransientError(f"{where} failed: {_describe(error)}; try again") from error
        raise ConfigurationError(f"{where} was refused: {_describe(error)}; check the table and permissions") from error


def _parse_address(address: str) -> URL:
    try:
        url = make_url(address)
    except (exc.ArgumentError, ValueError):
        # SQLAlchemy's own message repeats the address, which may contain a password.
        raise ConfigurationError(
            "the database's address is not a URL: write it like postgresql://user:password@host:5432/name, "
            "mysql://... or sqlite:///file.db"
        ) from None
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise ConfigurationError(f"the database's address names {backend}; supported are {', '.join(_DRIVERS)}")
    if backend == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise ConfigurationError(f"there is no SQLite file {url.database or 'in the address'}")
    return url.set(drivername=_DRIVERS[backend])


def _connect_arguments(url: URL) -> dict[str, int | str]:
    match url.get_backend_name():
        case "sqlite":
            return {}
        case "mysql" | "mariadb":
            return {"connect_timeout": _CONNECT_SECONDS}
        case _:  # by default psycopg takes the encoding of the database, and returns bytes where that is SQL_ASCII
            return {"connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8"}


def _require_outbox(engine: Engine) -> None:
    try:
        with translate_errors(engine, "looking for the outbox"):
            found = {column["name"] for column in inspect(engine).get_columns(OUTBOX.name)}
    except exc.NoSuchTableError:
        found = set[str]()
    except TypeError as error:  # pymysql raises it for an unknown option after the ? of an address
        raise ConfigurationError(f"the database's address has an option that the driver rejects: {error}") from None
    missing = [column.name for column in OUTBOX.columns if column.name not in found]
    if missing:
        problem = f"a table outbox without the columns {missing}" if found else "no table outbox"
        where = engine.url.render_as_string(hide_password=True)
        raise ConfigurationError(f"{where} has {problem}: create it with {_schema_file(engine)}")


def _schema_file(engine: Engine) -> Path:
    """Return the SQL file in this package that creates the outbox in a database of this kind."""
    kind = engine.dialect.name
    return Path(__file__).with_name(f"{'mysql' if kind == 'mariadb' else kind}.sql")


def _describe(error: exc.SQLAlchemyError) -> str:
    """Return the driver's message in one line, without SQLAlchemy's."""
    cause = getattr(error, "orig", None) or error
    return "; ".join(line.strip() for line in str(cause).splitlines() if line.strip())
