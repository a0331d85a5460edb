"""A database is opened, or one message says why not."""

import sys
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url, text

from pipelines.emit import outbox
from pipelines.emit.outbox.database import open_database
from pipelines.errors import ConfigurationError, TransientError
from tests.emit.outboxes import create_outbox, disposed, event, postgres_database, sqlite_url
from tests.services.ports import free_port
from tests.services.postgres_server import PostgresServer

WRONG = "a-secret"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("a-secret", "is not a URL"),
        ("postgresql://a:a-secret@host:port/x", "is not a URL"),
        ("oracle://a:a-secret@host/x", "names oracle"),
        ("sqlite:///there-is-none.db", "no SQLite file there-is-none.db"),
        ("sqlite://", "no SQLite file"),
        ("postgresql+asyncpg://a:a-secret@127.0.0.1:1/x?ssl=on", "invalid connection option"),
        ("mysql://a:a-secret@127.0.0.1:1/x", r"an outbox in mysql needs .*karmalake\[mysql\]"),
    ],
)
def test_an_invalid_address_is_refused(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what is wrong and never contains the password."""
    monkeypatch.setitem(sys.modules, "pymysql", None)  # as if it were not installed
    with pytest.raises(ConfigurationError, match=message) as caught, open_database(address):
        pass
    assert WRONG not in str(caught.value)


def test_wrong_password_and_closed_port_are_reported(postgres: PostgresServer) -> None:
    """An error that a retry may fix is a TransientError, in one line and without the password."""
    wrong = make_url(postgres.dsn).set(password=WRONG)
    for url in (wrong, wrong.set(port=free_port())):
        with pytest.raises(TransientError, match="looking for the outbox at") as caught, open_database(_text(url)):
            pass
        assert WRONG not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_may_have_any_encoding(postgres: PostgresServer, encoding: str) -> None:
    """A service that writes UTF-8 finds its text unchanged, also where PostgreSQL itself does not know the encoding."""
    with postgres_database(postgres, encoding) as url:
        with disposed(url.update_query_dict({"client_encoding": "utf8"})) as service, service.begin() as connection:
            create_outbox(service)
            outbox.add(connection, event(1, "Zoë"))
        with open_database(_text(url)) as opened, opened.connect() as connection:
            assert connection.execute(text("SELECT aggregateid FROM outbox")).all() == [("Zoë",)]


def test_missing_table_and_missing_column_are_reported(tmp_path: Path) -> None:
    """The message names what is missing, and where the table is described."""
    with disposed(sqlite_url(tmp_path)) as service:
        create_outbox(service)
        for statement, message in (
            (
                "ALTER TABLE outbox DROP COLUMN payload",
                r"without the columns \['payload'\]: create it with .*outbox/sqlite\.sql",
            ),
            ("DROP TABLE outbox", r"no table outbox: create it with .*outbox/sqlite\.sql"),
        ):
            with service.begin() as connection:
                connection.execute(text(statement))
            with pytest.raises(ConfigurationError, match=message), open_database(_text(service.url)):
                pass


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
