"""The service's database as the relay reaches it: opened by an address, with its errors said in karmalake's words."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, exc, inspect, make_url

from pipelines.emit.outbox.table import OUTBOX
from pipelines.errors import ConfigurationError, TransientError

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "sqlite": "sqlite",
}
"""Ours for each kind of database: the service's address may name another driver, perhaps an asynchronous one."""
_PACKAGES = {"psycopg": "psycopg[binary]", "pymysql": "pymysql"}
_CONNECT_SECONDS = 10


@contextlib.contextmanager
def open_database(address: str) -> Generator[Engine]:
    """Yield an engine for the database at `address`, in which there is an outbox; it is disposed of on the way out.

    Raises ConfigurationError for an address that cannot be meant, a driver that is not installed or a table that is
    missing, TransientError if the database does not answer. No message holds the password.
    """
    url = _understood(address)
    try:
        # READ COMMITTED: each statement sees what was committed before it, and on MySQL none locks gaps.
        isolation = {} if url.get_backend_name() == "sqlite" else {"isolation_level": "READ COMMITTED"}
        engine = create_engine(url, connect_args=_connect_arguments(url), pool_pre_ping=True, **isolation)
    except ImportError as error:
        package = _PACKAGES[url.get_driver_name()]
        raise ConfigurationError(f"the driver is not installed ({error}): pip install '{package}'") from None
    try:
        _require_outbox(engine)
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def translated(engine: Engine, doing: str) -> Generator[None]:
    """Turn what the database raises while `doing` into TransientError, or ConfigurationError (mend it first)."""
    where = f"{doing} at {engine.url.render_as_string(hide_password=True)}"
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
        sentence = f"{where} failed: {_said(error)}; check the address and that the database runs, then try again"
        raise TransientError(sentence) from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise TransientError(f"{where} failed: {_said(error)}; try again") from error
        raise ConfigurationError(f"{where} was refused: {_said(error)}; check the table and permissions") from error


def _understood(address: str) -> URL:
    try:
        url = make_url(address)
    except (exc.ArgumentError, ValueError):
        # SQLAlchemy's own message repeats the address, which may hold a password.
        raise ConfigurationError(
            "the database's address is no URL: write it like postgresql://user:password@host:5432/name, "
            "mysql://... or sqlite:///file.db"
        ) from None
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise ConfigurationError(
            f"the database's address names {backend}; an outbox is in one of {', '.join(_DRIVERS)}"
        )
    if backend == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise ConfigurationError(f"there is no SQLite file {url.database or 'in the address'}")
    return url.set(drivername=_DRIVERS[backend])


def _connect_arguments(url: URL) -> dict[str, int]:
    return {} if url.get_backend_name() == "sqlite" else {"connect_timeout": _CONNECT_SECONDS}


def _require_outbox(engine: Engine) -> None:
    try:
        with translated(engine, "looking for the outbox"):
            found = {column["name"] for column in inspect(engine).get_columns(OUTBOX.name)}
    except exc.NoSuchTableError:
        found = set[str]()
    except TypeError as error:  # pymysql's way to refuse what stands behind the ? of an address
        raise ConfigurationError(f"the database's address holds an option that the driver refuses: {error}") from None
    missing = [column.name for column in OUTBOX.columns if column.name not in found]
    if missing:
        what = f"a table outbox without the columns {missing}" if found else "no table outbox"
        where = engine.url.render_as_string(hide_password=True)
        raise ConfigurationError(f"{where} has {what}: create it by {_schema(engine)}")


def _schema(engine: Engine) -> Path:
    """Return the SQL file, in this package, that creates the outbox in a database of this kind."""
    kind = engine.dialect.name
    return Path(__file__).with_name(f"{'mysql' if kind == 'mariadb' else kind}.sql")


def _said(error: exc.SQLAlchemyError) -> str:
    """Return the driver's words in one line, without SQLAlchemy's."""
    cause = getattr(error, "orig", None) or error
    return "; ".join(line.strip() for line in str(cause).splitlines() if line.strip())
