"""Committed rows reach the topic, each user's events in order, whichever process is killed."""

import os
import random
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, select, text

from pipelines.bus.topics import ensure_topic
from pipelines.contract import event_pb2
from pipelines.emit import outbox
from pipelines.emit import relay as relay_module
from pipelines.emit.outbox import OUTBOX
from pipelines.emit.outbox.backlog import measure_backlog
from pipelines.emit.outbox.waiter import open_waiter
from pipelines.emit.relay import RelayedBatch, open_relay, relay, relay_once, relay_pending
from pipelines.errors import ConfigurationError
from pipelines.settings import KafkaSettings, Settings
from tests.commands import KARMALAKE, Started
from tests.conftest import REPOSITORY
from tests.emit.outboxes import create_outbox, disposed, event, mariadb_database, postgres_database, sqlite_url
from tests.emit.proxied_broker import proxied_broker
from tests.emit.test_producer import read_topic
from tests.services.mariadb_server import MariadbServer
from tests.services.postgres_server import PostgresServer
from tests.services.process import ended
from tests.services.proxy import Proxy
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.share import count


@pytest.fixture
def bus(settings: Settings) -> KafkaSettings:
    """Return settings of the embedded broker with an empty topic."""
    ensure_topic(settings.kafka)
    return settings.kafka


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[URL]:
    """Return a database on PostgreSQL with an outbox."""
    with postgres_database(postgres) as url, disposed(url) as engine:
        create_outbox(engine)
        yield url


@pytest.fixture
def mariadb_url(mariadb: MariadbServer) -> Iterator[URL]:
    """Return a database on MariaDB with an outbox."""
    with mariadb_database(mariadb) as url, disposed(url) as engine:
        create_outbox(engine)
        yield url


@pytest.fixture(params=["postgres", "mariadb"])
def server_url(request: pytest.FixtureRequest) -> URL:
    """Return a database server with an outbox, which several clients may use at once."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """Return a database with an outbox."""
    if request.param != "sqlite":
        yield request.getfixturevalue(f"{request.param}_url")
    else:
        with disposed(sqlite_url(tmp_path)) as engine:
            create_outbox(engine)
            yield engine.url


@pytest.fixture
def service(url: URL) -> Iterator[Engine]:
    """Return the service's own connections to the database."""
    with disposed(url) as engine:
        yield engine


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _add(engine: Engine, numbers: range, users: int = 3) -> None:
    """Commit events of several users in one transaction."""
    with engine.begin() as connection:
        for number in numbers:
            outbox.add(connection, event(number, f"user-{number % users}"))


def _rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return outbox.backlog(connection).rows


def _sent(bus: KafkaSettings) -> list[str]:
    """Return the event ids on the topic by user, in the order of the bus."""
    found = [(record.key, event_pb2.Event.FromString(record.value)) for record in read_topic(bus)]
    assert all(key == event.user_id.encode() for key, event in found)
    return [event.event_id for _, event in found]


def _numbers(ids: list[str], users: int) -> dict[int, list[int]]:
    """Return the numbers of each user's first arrivals."""
    first = list(dict.fromkeys(int(event_id[1:]) for event_id in ids))
    return {user: [number for number in first if number % users == user] for user in range(users)}


def _expected(count: int, users: int) -> dict[int, list[int]]:
    return {user: list(range(user, count, users)) for user in range(users)}


@contextmanager
def _relaying(url: URL, bus: KafkaSettings, outages: list[str] | None = None) -> Iterator[list[RelayedBatch]]:
    """Relay in a thread; on exit, stop it cleanly and raise its error."""
    stopping, sent = threading.Event(), list[RelayedBatch]()
    reported: list[str] = [] if outages is None else outages
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(
            relay, _text(url), bus, stopping, sent.append, lambda error: reported.append(str(error)), max_rows=20
        )
        try:
            yield sent
        finally:
            stopping.set()
        done.result(PATIENCE_SECONDS)


def test_committed_rows_are_sent_once_in_order_and_deleted(service: Engine, url: URL, bus: KafkaSettings) -> None:
    """Rows become records keyed by user_id, in order; none remains, and rolled-back rows are never sent."""
    _add(service, range(50))
    with service.connect() as connection:
        outbox.add(connection, event(99))
        connection.rollback()
    _add(service, range(50, 100))
    reports: list[RelayedBatch] = []
    with open_relay(_text(url), bus) as opened:
        relay_pending(opened, reports.append, max_rows=30)
        assert relay_once(opened).rows == 0
    assert [done.rows for done in reports] == [30, 30, 30, 10]
    assert _numbers(_sent(bus), 3) == _expected(100, 3)
    assert len(_sent(bus)) == 100
    assert _rows(service) == 0


def test_a_transaction_that_commits_late_with_a_lower_sequence_is_sent(server_url: URL, bus: KafkaSettings) -> None:
    """Rows are sent even if rows with higher numbers were sent before."""
    with disposed(server_url) as service, open_relay(_text(server_url), bus) as opened:
        with service.connect() as late:
            outbox.add(late, event(0))
            _add(service, range(1, 3))
            assert relay_once(opened).rows == 2
            late.commit()
        assert relay_once(opened).rows == 1
        assert sorted(_sent(bus)) == ["e0", "e1", "e2"]
        assert _rows(service) == 0


def test_relays_do_not_overtake_each_other_within_a_user(server_url: URL, bus: KafkaSettings) -> None:
    """While another relay holds earlier rows of a user, nothing of that user is sent; other users are unaffected."""
    with disposed(server_url) as service, disposed(server_url) as other:
        _add(service, range(9))
        with open_relay(_text(server_url), bus) as opened, other.connect() as connection:
            connection.execute(select(OUTBOX).where(OUTBOX.c.sequence == 4).with_for_update())
            assert relay_once(opened).rows == 7
            assert relay_once(opened).rows == 0
            connection.rollback()
            assert relay_once(opened).rows == 2
        assert _numbers(_sent(bus), 3) == _expected(9, 3)


def test_a_hanging_relay_blocks_only_its_own_users(server_url: URL, bus: KafkaSettings) -> None:
    """However many rows its users have after the locked ones, the rows of all other users are sent."""
    with disposed(server_url) as service, disposed(server_url) as hanging:
        _add(service, range(60), users=2)
        with service.begin() as connection:
            for number in range(60, 90):
                outbox.add(connection, event(number, f"other-{number % 3}"))
        with open_relay(_text(server_url), bus) as opened, hanging.connect() as connection:
            first = select(OUTBOX).order_by(OUTBOX.c.sequence).limit(10)
            assert len(connection.execute(first.with_for_update()).all()) == 10
            sent = [relay_once(opened, max_rows=10).rows for _ in range(4)]
            assert sent == [10, 10, 10, 0]
            assert {number for user in _numbers(_sent(bus), 1).values() for number in user} == set(range(60, 90))
            connection.rollback()
            relay_pending(opened, lambda _: None, max_rows=10)
        assert _rows(service) == 0
        assert _numbers(_sent(bus), 2)[0][-30:] == list(range(0, 60, 2))


def test_deleted_rows_are_not_scanned_each_time(
    postgres_url: URL, bus: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an old snapshot, which keeps deleted rows in the index, a scan starts after them."""
    with (
        disposed(postgres_url) as service,
        disposed(postgres_url) as reporting,
        open_relay(_text(postgres_url), bus) as opened,
        reporting.connect().execution_options(isolation_level="REPEATABLE READ") as old,
    ):
        assert old.execute(select(OUTBOX)).all() == []
        for start in range(0, 3_000, 1_000):
            _add(service, range(start, start + 1_000))
            opened.floor.full_scan_due = 0.0  # as if the seconds between two looks from the start had passed
            assert relay_once(opened).rows == 1_000
        scan_starts: list[int] = []
        lock = relay_module._lock
        monkeypatch.setattr(
            relay_module, "_lock", lambda *arguments: scan_starts.append(arguments[1]) or lock(*arguments)
        )
        assert relay_once(opened).rows == 0
        assert scan_starts == [1_001], "the oldest row of the last look but one"


def test_a_row_below_the_floor_is_sent_by_the_next_full_scan(server_url: URL, bus: KafkaSettings) -> None:
    """A long transaction commits rows below the number at which most scans start."""
    with disposed(server_url) as service, open_relay(_text(server_url), bus) as opened:
        with service.connect() as late:
            outbox.add(late, event(0))
            for number in range(1, 4):
                _add(service, range(number, number + 1))
                opened.floor.full_scan_due = 0.0
                assert relay_once(opened).rows == 1
            late.commit()
        assert relay_once(opened).rows == 0
        opened.floor.full_scan_due = 0.0
        assert relay_once(opened).rows == 1
        assert _rows(service) == 0


def test_a_servers_database_is_read_committed(server_url: URL, bus: KafkaSettings) -> None:
    """Each statement of a relay sees the rows that were committed before it."""
    with (
        disposed(server_url) as service,
        open_relay(_text(server_url), bus) as opened,
        opened.engine.connect() as connection,
    ):
        assert connection.execute(select(OUTBOX.c.sequence)).all() == []
        _add(service, range(2))
        assert len(connection.execute(select(OUTBOX.c.sequence)).all()) == 2


def test_three_relays_share_the_work_and_keep_each_users_order(server_url: URL, bus: KafkaSettings) -> None:
    """Rows that are added while three relays run are each sent exactly once, in each user's order."""
    users, count = 40, 3_000
    with disposed(server_url) as service, ExitStack() as relays:
        done = [relays.enter_context(_relaying(server_url, bus)) for _ in range(3)]
        for start in range(0, count, 100):
            _add(service, range(start, start + 100), users)
        wait_for("the outbox to be empty", lambda: _rows(service) == 0)
    ids = _sent(bus)
    assert len(ids) == count
    assert _numbers(ids, users) == _expected(count, users)
    assert all(done)


def test_postgresql_wakes_a_relay_at_once(postgres_url: URL) -> None:
    """A commit ends the wait of a relay that would otherwise poll in ten minutes; a rollback does not."""
    with disposed(postgres_url) as service, disposed(postgres_url) as own, open_waiter(own) as wait:
        _add(service, range(2))
        wait(threading.Event(), 600)
        with service.connect() as connection:
            outbox.add(connection, event(3))
            connection.rollback()
        wait(threading.Event(), 0.1)
        with ThreadPoolExecutor(1) as pool:
            woken = pool.submit(wait, threading.Event(), 600)
            _add(service, range(4, 5))
            woken.result(PATIENCE_SECONDS)


@pytest.mark.slow
@pytest.mark.usefixtures("broken_connections")
def test_a_broker_outage_only_delays(service: Engine, url: URL, tmp_path: Path) -> None:
    """During an outage of the broker rows stay and the service continues; afterwards all are sent, in order."""
    outages: list[str] = []
    with proxied_broker(tmp_path) as (proxy, kafka):
        with _relaying(url, kafka, outages):
            _add(service, range(30))
            wait_for("the first events to be sent", lambda: _rows(service) == 0)
            proxy.cut()
            _add(service, range(30, 90))
            wait_for("the relay to notice", lambda: outages)
            assert _rows(service) == 60
            proxy.heal()
            wait_for("the rest to be sent", lambda: _rows(service) == 0)
        assert _numbers(_sent(kafka), 3) == _expected(90, 3)


def test_a_database_outage_only_delays(server_url: URL, bus: KafkaSettings) -> None:
    """All connections are reset, also the listening one; afterwards everything is sent, in order."""
    outages: list[str] = []
    with (
        disposed(server_url) as service,
        Proxy(server_url.port or 0) as proxy,
        _relaying(server_url.set(port=proxy.port), bus, outages),
    ):
        _add(service, range(30))
        wait_for("the first events to be sent", lambda: _rows(service) == 0)
        proxy.cut()
        wait_for("the relay to notice", lambda: outages)
        _add(service, range(30, 90))
        proxy.heal()
        wait_for("the rest to be sent", lambda: _rows(service) == 0)
    assert _numbers(_sent(bus), 3) == _expected(90, 3)
    assert server_url.password is not None
    assert not any(server_url.password in outage for outage in outages)


def test_rows_sent_but_not_deleted_are_sent_again(
    service: Engine, url: URL, bus: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between acknowledgement and commit leaves every row: the copies follow the first deliveries."""
    _add(service, range(9))
    send = relay_module._send

    def send_and_end(*arguments: Any) -> int:
        send(*arguments)
        raise KeyboardInterrupt

    with open_relay(_text(url), bus) as opened:
        monkeypatch.setattr(relay_module, "_send", send_and_end)
        with pytest.raises(KeyboardInterrupt):
            relay_once(opened)
        monkeypatch.undo()
        assert relay_once(opened).rows == 9
    ids = _sent(bus)
    assert sorted(ids) == sorted(2 * [f"e{number}" for number in range(9)])
    assert _numbers(ids, 3) == _expected(9, 3)


def test_a_row_too_large_for_the_broker_is_named(service: Engine, url: URL, bus: KafkaSettings) -> None:
    """A row of plain SQL that exceeds the record limit stops the relay with its name; earlier rows stay, too."""
    _add(service, range(2))
    with service.begin() as connection:
        row = {"id": "big", "aggregateid": "ann", "type": "A", "payload": b"x" * 2_000_000}
        connection.execute(OUTBOX.insert(), [row])
    with pytest.raises(ConfigurationError, match="row 3 of the outbox"), open_relay(_text(url), bus) as opened:
        relay_once(opened)
    assert _rows(service) == 3


def test_values_of_other_types(tmp_path: Path, bus: KafkaSettings) -> None:
    """SQLite stores what a service binds: JSON as text is sent, its time may have a zone, and a blob is no user_id."""
    with disposed(sqlite_url(tmp_path)) as engine:
        create_outbox(engine)
        with engine.begin() as connection:
            insert = text(
                "INSERT INTO outbox (id, aggregateid, type, payload, timestamp) VALUES ('e', :user, 'A', :it, :at)"
            )
            connection.execute(insert, {"user": "ann", "it": '{"ü": 1}', "at": "2026-01-01T00:00:00.000Z"})
        with open_relay(_text(engine.url), bus) as opened:
            with engine.connect() as connection:
                assert outbox.backlog(connection).oldest_age_seconds > 0
            assert relay_once(opened).rows == 1
            assert [record.value for record in read_topic(bus)] == ['{"ü": 1}'.encode()]
            with engine.begin() as connection:
                connection.execute(insert, {"user": b"ann", "it": b"", "at": "2026-01-01"})
            with pytest.raises(ConfigurationError, match=r"row 2 .* type bytes in the column aggregateid, where text"):
                relay_once(opened)
            for at in (1767225600, "yesterday", b"2026-01-01"):
                with engine.begin() as connection:
                    connection.execute(text("UPDATE outbox SET timestamp = :at"), {"at": at})
                    with pytest.raises(ConfigurationError, match=rf"row 2 .* has {at!r} in the column timestamp"):
                        outbox.backlog(connection)


@pytest.mark.parametrize(("column", "value"), [("sequence", "'1'"), ("aggregateid", "17"), ("timestamp", "17")])
def test_columns_of_other_types(service: Engine, url: URL, bus: KafkaSettings, column: str, value: str) -> None:
    """A table that a service made otherwise: its column is named, by the database or by us."""
    values = {"sequence": "1", "id": "'e'", "aggregatetype": "'user'", "aggregateid": "'ann'", "type": "'A'"}
    values |= {"payload": "'{}'", "timestamp": "CURRENT_TIMESTAMP", column: value}
    with service.begin() as connection:
        connection.execute(text("DROP TABLE outbox"))
        made = ", ".join(f"{each} AS {name}" for name, each in values.items())
        connection.execute(text(f"CREATE TABLE outbox AS SELECT {made}"))
    with open_relay(_text(url), bus) as opened:
        work = partial(measure_backlog, _text(url)) if column == "timestamp" else partial(relay_once, opened)
        with pytest.raises(ConfigurationError, match=rf"(row 1|outbox) .*{column}"):
            work()


def _command(url: URL, bus: KafkaSettings, arguments: Sequence[str] = ()) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
    environment |= {
        "KARMALAKE_RELAY_DATABASE_URL": _text(url),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(bus.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": bus.topic,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
    }
    program = [*KARMALAKE, "relay", *arguments]
    return Started(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_the_command_sends_pending_rows_and_ends(service: Engine, url: URL, bus: KafkaSettings) -> None:
    """`--once` prints the numbers of rows pending, sent and remaining."""
    _add(service, range(7))
    with ended(_command(url, bus, ["--once", "--batch", "5"])) as process:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    lines = output.splitlines()
    assert lines[0].startswith("7 events waiting in the outbox, the oldest for ")
    assert [line.split(",")[0] for line in lines[1:3]] == ["sent 5 events", "sent 2 events"]
    assert lines[3:] == ["0 events waiting in the outbox"]
    assert len(_sent(bus)) == 7


def test_the_command_ends_cleanly_on_sigterm(postgres_url: URL, bus: KafkaSettings) -> None:
    """After SIGTERM the current batch is finished, and the exit code is 0."""
    with disposed(postgres_url) as service, ended(_command(postgres_url, bus)) as process:
        _add(service, range(7))
        wait_for("the events to be sent", lambda: _rows(service) == 0)
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    assert output.splitlines()[-1] == "stopped; unsent events remain in the outbox"


@pytest.mark.slow
def test_kills_lose_nothing_and_keep_each_users_order(postgres_url: URL, bus: KafkaSettings) -> None:
    """Relays are killed one by one while they work: every event arrives, first deliveries in order.

    Each has a hundred batches to send when it may be killed; LONG=1 kills ten.
    """
    kills, users, a_round = count(5, 10), 70, 500
    rng = random.Random(5)  # noqa: S311 # no secret
    remaining: list[int] = []
    with disposed(postgres_url) as service, ExitStack() as relays:
        processes = [relays.enter_context(ended(_command(postgres_url, bus, ["--batch", "5"]))) for _ in range(kills)]
        for process in processes:
            assert process.stdout is not None
            assert "waiting in the outbox" in process.stdout.readline()
            assert "relaying to" in process.stdout.readline()
        for number, process in enumerate(processes):
            _add(service, range(number * a_round, (number + 1) * a_round), users)
            target = rng.uniform(0.3, 1) * a_round
            while _rows(service) > target:
                assert process.poll() is None
            process.kill()
            remaining.append(_rows(service))
        with open_relay(_text(postgres_url), bus) as opened:
            wait_for("the outbox to be empty", lambda: not relay_once(opened).rows and _rows(service) == 0)
    ids = _sent(bus)
    assert set(ids) == {f"e{number}" for number in range(kills * a_round)}
    assert _numbers(ids, users) == _expected(kills * a_round, users)
    assert sum(map(bool, remaining)) > kills // 2, f"most kills came too late to interrupt anything: {remaining}"


@pytest.mark.jvm
@pytest.mark.usefixtures("broken_connections")
def test_apache_kafka_may_be_killed_under_three_relays(postgres_url: URL, tmp_path: Path) -> None:
    """The broker is killed and restarted while rows are added: every event arrives, first deliveries in order."""
    require("kafka")
    from tests.services.kafka_cluster import KafkaCluster  # noqa: PLC0415 # warns when it is imported

    users, count = 20, 3_000
    with KafkaCluster(tmp_path) as cluster, disposed(postgres_url) as service:
        kafka = cluster.settings(topic="events", request_timeout_seconds=2.0)
        ensure_topic(kafka)
        with ExitStack() as relays:
            done = [relays.enter_context(_relaying(postgres_url, kafka)) for _ in range(3)]
            for start in range(0, count, 100):
                _add(service, range(start, start + 100), users)
                if start == count // 3:
                    cluster.kill(0)
            wait_for("something to wait", lambda: _rows(service) > 0)
            cluster.start(0)
            wait_for("the outbox to be empty", lambda: _rows(service) == 0)
        ids = _sent(kafka)
    assert set(ids) == {f"e{number}" for number in range(count)}
    assert _numbers(ids, users) == _expected(count, users)
    assert any(done)


@pytest.mark.jvm
def test_a_rejected_row_is_not_overtaken_by_its_user(postgres_url: URL, request: pytest.FixtureRequest) -> None:
    """A record above the topic's limit ends the relay; later rows of that user are not sent before it."""
    cluster = request.getfixturevalue("kafka")
    kafka = cluster.settings(topic=cluster.new_topic(max_message_bytes="20000"))
    with disposed(postgres_url) as service:
        for number in range(300):
            metadata = {"note": "x" * (30_000 if number == 150 else 500)}
            with service.begin() as connection:
                outbox.add(connection, replace(event(number), metadata=metadata))
        with (
            pytest.raises(ConfigurationError, match="300 rows of the outbox"),
            open_relay(_text(postgres_url), kafka) as opened,
        ):
            relay_once(opened)
        assert _rows(service) == 300
    sent = _sent(kafka)
    assert sent == [f"e{number}" for number in range(len(sent))]
    assert len(sent) <= 150
