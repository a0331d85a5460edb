"""The table `outbox` in SQLAlchemy; the SQL files in this package create the same one.

Columns have the names that Debezium's outbox event router expects.
"""

from importlib import resources
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    DateTime,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    event,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import BLANK_SCHEMA
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

AGGREGATE_TYPE = "user"
CHANNEL = "outbox"
"""PostgreSQL notifies this channel when rows are committed."""
_MYSQL = ("mysql", "mariadb")
_MAX_NAME_CHARS = 256
_NAME = String(_MAX_NAME_CHARS).with_variant(
    mysql.VARCHAR(_MAX_NAME_CHARS, charset="utf8mb4", collation="utf8mb4_bin"), *_MYSQL
)
_TIMESTAMP = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *_MYSQL)


class utc_now(FunctionElement[Any]):  # noqa: N801 # a SQL function
    """The database's clock in UTC, in the format of the column `timestamp`."""

    type = DateTime(timezone=True)
    inherit_cache = True


@compiles(utc_now, "postgresql")
def _postgresql_now(_element: utc_now, _compiler: SQLCompiler, **_options: object) -> str:
    return "clock_timestamp()"


@compiles(utc_now, "mysql", "mariadb")
def _mysql_now(_element: utc_now, _compiler: SQLCompiler, **_options: object) -> str:
    return "(utc_timestamp(6))"


@compiles(utc_now, "sqlite")
def _sqlite_now(_element: utc_now, _compiler: SQLCompiler, **_options: object) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))"


def outbox_table(metadata: MetaData) -> Table:
    """Define the table `outbox` in `metadata` and return it; `metadata.create_all()` or a migration creates it.

    It belongs to the connection's default schema. On PostgreSQL, `create_all()` also creates the trigger that wakes
    relays; a migration executes `notify_statements()` for it. Without the trigger, relays poll.
    """
    table = Table(
        "outbox",
        metadata,
        Column("sequence", BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True),
        Column("id", _NAME, nullable=False),
        Column("aggregatetype", _NAME, nullable=False, server_default=AGGREGATE_TYPE),
        Column("aggregateid", _NAME, nullable=False),
        Column("type", _NAME, nullable=False),
        Column("payload", LargeBinary().with_variant(mysql.MEDIUMBLOB(), *_MYSQL), nullable=False),
        Column("timestamp", _TIMESTAMP, nullable=False, server_default=utc_now()),
        schema=BLANK_SCHEMA,
        sqlite_autoincrement=True,  # a reused number could be deleted by a relay that sent its predecessor
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    for statement in notify_statements():
        event.listen(table, "after_create", DDL(statement).execute_if(dialect="postgresql"))
    return table


def notify_statements() -> list[str]:
    """Return the statements of postgresql_notify.sql, which create the trigger that wakes relays and its function."""
    text = resources.files("pipelines.emit.outbox").joinpath("postgresql_notify.sql").read_text(encoding="utf-8")
    return [statement.strip() for statement in text.split("\n\n") if statement.strip()]


OUTBOX = outbox_table(MetaData())
"""The table object of `add` and the relay; a service's own metadata holds another one of the same name."""
