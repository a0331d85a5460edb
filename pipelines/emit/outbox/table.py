"""The table `outbox` as SQLAlchemy makes it; the SQL files beside this module make the same one.

The names of the columns are those of Debezium's outbox event router.
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
"""PostgreSQL notifies this channel of rows that were committed."""
_MYSQL = ("mysql", "mariadb")
_LONGEST_NAME = 256
_NAME = String(_LONGEST_NAME).with_variant(
    mysql.VARCHAR(_LONGEST_NAME, charset="utf8mb4", collation="utf8mb4_bin"), *_MYSQL
)
_TIMESTAMP = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *_MYSQL)


class utc_now(FunctionElement[Any]):  # noqa: N801 # a function of SQL
    """The database's own clock, in UTC, as the column `timestamp` holds it."""

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
    """Return the table `outbox` in `metadata`; `metadata.create_all()` or a migration then creates it.

    It stands in the default schema of the connection. On PostgreSQL, `create_all()` adds the trigger that wakes
    relays; a migration executes `notify_statements()` for it, or leaves it away: then relays poll.
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
        sqlite_autoincrement=True,  # a number must not come back under a relay that deletes what it had before
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    for statement in notify_statements():
        event.listen(table, "after_create", DDL(statement).execute_if(dialect="postgresql"))
    return table


def notify_statements() -> list[str]:
    """Return the statements of postgresql_notify.sql: the function and the trigger that wake relays."""
    text = resources.files("pipelines.emit.outbox").joinpath("postgresql_notify.sql").read_text(encoding="utf-8")
    return [statement.strip() for statement in text.split("\n\n") if statement.strip()]


OUTBOX = outbox_table(MetaData())
"""The table as `add` and the relay address it; a service's own metadata holds another object of the same name."""
