"""An event is in the outbox if, and only if, the service's transaction committed, and it satisfies the contract."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, inspect, select, text
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.mysql.mariadb import MariaDBDialect
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from pipelines.contract.decode import decode
from pipelines.contract.schema import EVENT, RECORD
from pipelines.emit import outbox
from pipelines.emit.outbox import OUTBOX, Event
from pipelines.emit.outbox.insert import _row
from pipelines.emit.outbox.table import notify_statements
from pipelines.errors import UsageError
from pipelines.settings import ContractSettings
from tests.conftest import REPOSITORY
from tests.emit.outboxes import TIME, create_outbox, disposed, event, mariadb_database, postgres_database, sqlite_url

_RIDES = Table("rides", MetaData(), Column("id", Integer, primary_key=True))


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return an empty database for one test."""
    if request.param == "sqlite":
        with disposed(sqlite_url(tmp_path)) as engine:
            yield engine
    else:
        create = postgres_database if request.param == "postgres" else mariadb_database
        with create(request.getfixturevalue(request.param)) as url, disposed(url) as engine:
            yield engine


@pytest.fixture
def service(database: Engine) -> Engine:
    """Return the database of a service that has rides and an outbox."""
    create_outbox(database)
    _RIDES.metadata.create_all(database)
    return database


def _ids(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(OUTBOX.c.id).order_by(OUTBOX.c.sequence)))


def _add_both(connection: Connection, first: Event, second: Event) -> None:
    outbox.add(connection, first)
    outbox.add(connection, second)


def _decoded(value: bytes, user_id: str) -> pa.Table:
    """Return the event that ingest decodes from a payload, as EVENT columns; empty if it is rejected."""
    row = {"topic_id": "t", "topic": "t", "topic_partition": 0, "offset": 0, "bus_time": datetime.now(UTC)}
    records = pa.Table.from_pylist([row | {"key": user_id.encode(), "value": value}], schema=RECORD)
    return decode(records, ContractSettings()).events.select(EVENT.names)


def test_an_event_exists_exactly_if_its_transaction_committed(service: Engine) -> None:
    """Both the business row and its event exist, or neither: through a Connection and through a Session."""
    with service.connect() as connection:
        connection.execute(_RIDES.insert().values(id=1))
        outbox.add(connection, event(1))
        connection.rollback()
        connection.execute(_RIDES.insert().values(id=2))
        outbox.add(connection, event(2))
        connection.commit()
    with Session(service) as session:
        session.execute(_RIDES.insert().values(id=3))
        outbox.add(session, event(3))
        session.commit()
        outbox.add(session, event(4))
        session.rollback()
    with pytest.raises(UsageError), service.begin() as connection:
        _add_both(connection, event(5), replace(event(6), user_id=""))
    with service.connect() as connection:
        assert list(connection.scalars(select(_RIDES.c.id))) == [2, 3]
    assert _ids(service) == ["e2", "e3"]


def test_a_row_is_what_debezium_and_ingest_expect(service: Engine) -> None:
    """The columns hold key, type and payload, and the payload decodes to the event, to the microsecond."""
    sample = Event("id 1", "Zoë/⟨1⟩", "DriverRated", TIME.astimezone(), {"rating": "5", "note": "a\0b", "": ""})
    with service.begin() as connection:
        outbox.add(connection, sample)
    with service.connect() as connection:
        row = connection.execute(select(OUTBOX)).one()
    assert (row.id, row.aggregatetype, row.aggregateid, row.type) == ("id 1", "user", "Zoë/⟨1⟩", "DriverRated")
    [decoded] = _decoded(row.payload, row.aggregateid).to_pylist()
    assert decoded == {
        "event_id": "id 1",
        "user_id": "Zoë/⟨1⟩",
        "action_type": "DriverRated",
        "event_time": TIME,
        "metadata": decoded["metadata"],
    }
    assert dict(decoded["metadata"]) == sample.metadata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event_id": ""}, "event_id is empty"),
        ({"user_id": None}, "user_id is None, a NoneType"),
        ({"user_id": 7}, "user_id is 7, a int"),
        ({"action_type": ""}, "action_type is empty"),
        ({"event_id": "é" * 129}, "event_id has 258 bytes; 256 are allowed"),
        ({"user_id": "a\0b"}, "user_id 'a.x00b' contains a NUL"),
        ({"user_id": "\ud800"}, "user_id .* is not UTF-8"),
        ({"metadata": {"rating": 5}}, r"metadata\['rating'\] is 5, a int"),
        ({"metadata": {3: "x"}}, "the metadata key 3 is 3, a int"),
        ({"metadata": {"note": "x" * 65_536}}, "metadata has 65540 bytes"),
        ({"timestamp": TIME.replace(tzinfo=None)}, "has no time zone"),
        ({"timestamp": "2024-03-01"}, "timestamp is '2024-03-01', a str"),
        ({"timestamp": datetime(1999, 12, 31, tzinfo=UTC)}, "before 2000-01-01"),
        ({"timestamp": datetime.now(UTC) + timedelta(days=2)}, "in the future"),
    ],
)
def test_contract_violations_name_the_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The error names the field; nothing is inserted, and the transaction can continue."""
    with disposed(sqlite_url(tmp_path)) as engine:
        create_outbox(engine)
        with engine.begin() as connection:
            with pytest.raises(UsageError, match=message):
                outbox.add(connection, replace(event(1), **change))
            outbox.add(connection, event(2))
        assert _ids(engine) == ["e2"]


_TEXTS = st.text(max_size=300) | st.integers(120, 260).map("é".__mul__) | st.integers(120, 260).map("x".__mul__)
_TIMES = st.datetimes(datetime(1999, 12, 30), datetime.now() + timedelta(days=3), timezones=st.just(UTC))  # noqa: DTZ001, DTZ005 # hypothesis wants them bare


@given(
    sample=st.builds(
        Event,
        _TEXTS,
        _TEXTS,
        _TEXTS,
        _TIMES,
        st.dictionaries(st.text(max_size=9), st.sampled_from(["", "x", "x" * 65_500, "é" * 32_768]), max_size=2),
    )
)
def test_add_accepts_what_ingest_accepts(sample: Event) -> None:
    """`add` and ingest agree on valid events, except for NUL, which not every database can store."""
    engine = create_engine("sqlite://")
    create_outbox(engine)
    with engine.begin() as connection:
        refusal = _refusal(connection, sample)
        payloads = list(connection.scalars(select(OUTBOX.c.payload)))
    engine.dispose()
    if refusal is None:
        assert [len(_decoded(payload, sample.user_id)) for payload in payloads] == [1]
    else:
        assert payloads == []
        assert "NUL" in refusal or not len(_decoded(_row(sample)["payload"], sample.user_id))


def _refusal(connection: Connection, sample: Event) -> str | None:
    try:
        outbox.add(connection, sample)
    except UsageError as error:
        return str(error)
    return None


def test_backlog_has_rows_and_age(service: Engine) -> None:
    """The age is that of the oldest row, by the database's clock; 0 without rows."""
    with service.begin() as connection:
        assert outbox.backlog(connection) == outbox.Backlog(0, 0.0)
        for number in range(3):
            outbox.add(connection, event(number))
        hour_ago = {
            "postgresql": text("timestamp - interval '1 hour'"),
            "mysql": text("timestamp - INTERVAL 1 HOUR"),
            "sqlite": text("datetime(timestamp, '-1 hour')"),
        }[service.dialect.name]
        connection.execute(OUTBOX.update().where(OUTBOX.c.id == "e1").values(timestamp=hour_ago))
        measured = outbox.backlog(connection)
    assert measured.rows == 3
    assert 3600 <= measured.oldest_age_seconds < 3660


def _sql(name: str) -> str:
    return resources.files("pipelines.emit.outbox").joinpath(f"{name}.sql").read_text(encoding="utf-8")


def _bare(statements: str) -> str:
    """Return SQL without comments and with single spaces."""
    without = re.sub(r"--.*", "", statements)
    return re.sub(r"\s+", " ", without).replace("( ", "(").replace(" )", ")").replace(") ENGINE", ")ENGINE").strip(" ;")


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("postgresql", postgresql.dialect()),
        ("mysql", mysql.dialect()),
        ("mysql", MariaDBDialect()),
        ("sqlite", sqlite.dialect()),
    ],
)
def test_sql_files_match_the_sqlalchemy_table(name: str, dialect: Dialect) -> None:
    """A service in another language has exactly the same table."""
    assert _bare(_sql(name)) == _bare(str(CreateTable(OUTBOX).compile(dialect=dialect)))


def test_sql_files_create_the_table_of_create_all(database: Engine) -> None:
    """The files run unchanged, and the database reports their table as equal to that of create_all."""
    found = []
    for create in (_from_files, create_outbox):
        create(database)
        columns = [{**column, "type": str(column["type"])} for column in inspect(database).get_columns("outbox")]
        found.append((columns, inspect(database).get_pk_constraint("outbox"), _triggers(database)))
        with database.begin() as connection:
            outbox.add(connection, event(1))
            connection.execute(text("DROP TABLE outbox"))
    assert found[0] == found[1]
    assert len(found[0][0]) == 7


def _from_files(database: Engine) -> None:
    name = database.dialect.name
    with database.begin() as connection:
        connection.exec_driver_sql(_sql(name))
        if name == "postgresql":
            connection.exec_driver_sql(_sql("postgresql_notify"))


def _triggers(database: Engine) -> list[str]:
    if database.dialect.name != "postgresql":
        return []
    with database.connect() as connection:
        found = connection.execute(text("SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"))
        triggers = list(found.scalars())
    assert len(triggers) == len(notify_statements()) - 1
    return triggers


def test_python_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that copies the example of docs/outbox.md has a business row and an event."""
    page = (REPOSITORY / "docs" / "outbox.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 # it is our own page
    assert _ids(names["engine"]) == ["ride-1/rated"]
    names["engine"].dispose()


def test_sql_example_of_the_docs_adds_the_same_row(service: Engine) -> None:
    """A row of plain SQL differs from one of `add` only in sequence number and time."""
    page = (REPOSITORY / "docs" / "outbox.md").read_text(encoding="utf-8")
    [statement] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    expected = _row(event(1))
    values = {
        "event_id": expected["id"],
        "user_id": expected["aggregateid"],
        "action_type": expected["type"],
        "event_in_protobuf": expected["payload"],
    }
    with service.begin() as connection:
        outbox.add(connection, event(1))
        connection.execute(text(statement), values)
        columns = [OUTBOX.c.id, OUTBOX.c.aggregatetype, OUTBOX.c.aggregateid, OUTBOX.c.type, OUTBOX.c.payload]
        by_add, by_sql = connection.execute(select(*columns).order_by(OUTBOX.c.sequence)).all()
    assert by_add == by_sql
