"""The servers of the tests are real, do what the later tests rely on, and leave nothing behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, SaslAuthenticationFailedError
from kafka.structs import TopicPartition
from pydantic import SecretStr
from redis.exceptions import NoPermissionError

from pipelines.settings import KafkaSettings
from tests.services import requirements
from tests.services.certificates import make_certificates
from tests.services.kafka_cluster import KafkaCluster, Listener
from tests.services.ports import HOST, free_port
from tests.services.postgres_server import PostgresServer
from tests.services.process import Server
from tests.services.proxy import Proxy
from tests.services.redis_server import RedisServer
from tests.services.requirements import missing, require
from tests.services.waiting import wait_for

REPOSITORY = Path(__file__).resolve().parents[1]
ADMIN_PASSWORD = "admin"  # noqa: S105 # of a server that lives as long as a test
WRONG_PASSWORD = "wrong"  # noqa: S105 # opens nothing
CODECS = (None, "gzip", "snappy", "lz4", "zstd")


# kafka-python's published stubs are years older than it: clients are typed Any.
@contextlib.contextmanager
def _producer(settings: KafkaSettings, **options: Any) -> Generator[Any]:
    factory: Any = KafkaProducer
    with contextlib.closing(factory(**settings.client_config(), **options)) as client:
        yield client


@contextlib.contextmanager
def _consumer(settings: KafkaSettings, topic: str, **options: Any) -> Generator[Any]:
    factory: Any = KafkaConsumer
    with contextlib.closing(factory(**settings.client_config(), **options)) as client:
        client.assign([TopicPartition(topic, 0)])
        client.seek_to_beginning()
        yield client


def _send(settings: KafkaSettings, topic: str, *values: bytes, **options: Any) -> None:
    with _producer(settings, **options) as producer:
        for sent in [producer.send(topic, value, partition=0) for value in values]:
            sent.get(30)


def _read(settings: KafkaSettings, topic: str, count: int, **options: Any) -> list[bytes]:
    """Read until `count` records have come."""
    values: list[bytes] = []

    def enough() -> bool:
        for records in consumer.poll(timeout_ms=200).values():
            values.extend(record.value for record in records)
        return len(values) >= count

    with _consumer(settings, topic, **options) as consumer:
        wait_for(f"{count} records of {topic}", enough)
    return values


@pytest.mark.jvm
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_goes_through_the_broker(kafka: KafkaCluster, codec: str | None) -> None:
    """What kafka-python compresses, the broker validates and kafka-python reads back."""
    topic = kafka.new_topic()
    values = [f"{codec} {number} ".encode() * 20 for number in range(200)]
    _send(kafka.settings(), topic, *values, compression_type=codec, linger_ms=50)
    assert _read(kafka.settings(), topic, len(values)) == values


@pytest.mark.jvm
@pytest.mark.parametrize("codec", CODECS[1:])
def test_every_codec_of_the_broker_can_be_read(kafka: KafkaCluster, codec: str) -> None:
    """A topic whose broker compresses by itself (Java's encoders) is readable."""
    topic = kafka.new_topic(compression_type=codec)
    values = [f"{codec} {number} ".encode() * 20 for number in range(200)]
    _send(kafka.settings(), topic, *values, linger_ms=50)
    assert _read(kafka.settings(), topic, len(values)) == values


@pytest.mark.jvm
def test_an_aborted_transaction_is_hidden_and_its_markers_take_offsets(kafka: KafkaCluster) -> None:
    """read_committed sees the committed record only; both markers count, the last one ends the topic partition."""
    topic = kafka.new_topic()
    with _producer(kafka.settings(), transactional_id=f"tx-{uuid.uuid4()}") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, b"aborted", partition=0)
        producer.flush()
        producer.abort_transaction()
        producer.begin_transaction()
        producer.send(topic, b"committed", partition=0)
        producer.commit_transaction()
    assert _read(kafka.settings(), topic, 1, isolation_level="read_committed") == [b"committed"]
    assert _read(kafka.settings(), topic, 2) == [b"aborted", b"committed"]
    with _consumer(kafka.settings(), topic) as consumer:
        place = TopicPartition(topic, 0)
        assert consumer.end_offsets([place]) == {place: 4}


@pytest.mark.jvm
def test_deleted_records_move_the_beginning(kafka: KafkaCluster) -> None:
    """After delete_records the topic partition begins where the rest begins."""
    topic = kafka.new_topic()
    _send(kafka.settings(), topic, *[b"%d" % number for number in range(10)])
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 7})
    assert _beginning(kafka, topic) == 7
    assert _read(kafka.settings(), topic, 3) == [b"7", b"8", b"9"]


@pytest.mark.jvm
def test_retention_moves_the_beginning(kafka: KafkaCluster) -> None:
    """A topic with a retention of a millisecond and short segments loses its records within seconds."""
    topic = kafka.new_topic(retention_ms="1", segment_ms="100")
    _send(kafka.settings(), topic, b"first")
    wait_for("retention to pass the first record", lambda: _beginning(kafka, topic) == 1)


def _beginning(kafka: KafkaCluster, topic: str) -> int:
    place = TopicPartition(topic, 0)
    with _consumer(kafka.settings(), topic) as consumer:
        return consumer.beginning_offsets([place])[place]


@pytest.mark.jvm
def test_a_recreated_topic_has_another_id(kafka: KafkaCluster) -> None:
    """Deleting a topic and creating it again under the same name gives a new topic id and new offsets."""
    topic = kafka.new_topic()
    _send(kafka.settings(), topic, b"old")
    with kafka.admin() as admin:
        [before] = admin.describe_topics([topic])
        admin.delete_topics([topic])
        wait_for("the topic to go", lambda: topic not in admin.list_topics())
        kafka.create_topic(topic)
        [after] = admin.describe_topics([topic])
    assert before["topic_id"] != after["topic_id"]
    _send(kafka.settings(), topic, b"new")
    assert _read(kafka.settings(), topic, 1) == [b"new"]


@pytest.mark.jvm
def test_an_unknown_topic_is_not_created(kafka: KafkaCluster) -> None:
    """Asking for a topic does not make it: a misspelt name must not look like an empty topic."""
    with _consumer(kafka.settings(), "no-such-topic") as consumer:
        assert consumer.partitions_for_topic("no-such-topic") is None


@pytest.mark.jvm
@pytest.mark.parametrize(
    ("listener", "changes"),
    [
        ("SSL", {}),
        ("SASL_SSL", {"sasl_mechanism": "PLAIN"}),
        ("SASL_SSL", {"sasl_mechanism": "SCRAM-SHA-256"}),
        ("SASL_SSL", {"sasl_mechanism": "SCRAM-SHA-512"}),
    ],
)
def test_secured_listeners_serve_the_settings(kafka: KafkaCluster, listener: Listener, changes: dict[str, str]) -> None:
    """A client built from KafkaSettings writes and reads over TLS, by certificate and by every SASL mechanism."""
    topic = kafka.new_topic()
    settings = kafka.settings(listener, **changes)
    _send(settings, topic, b"sealed")
    assert _read(settings, topic, 1) == [b"sealed"]


@pytest.mark.jvm
def test_a_wrong_password_is_refused(kafka: KafkaCluster) -> None:
    """The SASL listener really checks."""
    settings = kafka.settings("SASL_SSL", sasl_password=SecretStr(WRONG_PASSWORD))
    with pytest.raises(SaslAuthenticationFailedError), _producer(settings):
        pass


@pytest.mark.jvm
def test_a_missing_client_certificate_is_refused(kafka: KafkaCluster) -> None:
    """The SSL listener demands a certificate."""
    settings = kafka.settings("SSL", ssl_certfile=None, ssl_keyfile=None)
    with pytest.raises(KafkaError), _producer(settings, bootstrap_timeout_ms=2000):
        pass


@pytest.mark.jvm
def test_a_killed_broker_keeps_its_data_and_port(tmp_path: Path) -> None:
    """After SIGKILL nobody listens; started again, the broker has the records and the topic id."""
    require("kafka")
    with KafkaCluster(tmp_path) as cluster:
        topic = cluster.new_topic()
        _send(cluster.settings(), topic, b"kept")
        cluster.kill(0)
        with pytest.raises(ConnectionRefusedError):
            _connect(int(cluster.bootstrap_servers.split(":")[1]))
        cluster.start(0)
        assert _read(cluster.settings(), topic, 1) == [b"kept"]


@pytest.mark.jvm
def test_three_brokers_survive_the_loss_of_one(tmp_path: Path) -> None:
    """With one of three brokers killed and another stopped and started, acks=all writes succeed and nothing is lost."""
    require("kafka")
    with KafkaCluster(tmp_path, brokers=3) as cluster:
        topic = cluster.new_topic()
        _send(cluster.settings(), topic, b"three", acks="all")
        cluster.kill(0)
        _send(cluster.settings(), topic, b"two", acks="all")
        cluster.start(0)
        assert _read(cluster.settings(), topic, 2) == [b"three", b"two"]


@pytest.mark.jvm
def test_a_paused_broker_answers_late(tmp_path: Path) -> None:
    """A frozen broker accepts connections and says nothing; resumed, it goes on where it was."""
    require("kafka")
    with KafkaCluster(tmp_path, proxied=True) as cluster:
        topic = cluster.new_topic()
        cluster.pause(0)
        with pytest.raises(KafkaTimeoutError), _producer(cluster.settings(), bootstrap_timeout_ms=1000):
            pass
        cluster.resume(0)
        _send(cluster.settings(), topic, b"thawed")
        cluster.proxies[0].cut()
        with pytest.raises(KafkaTimeoutError), _producer(cluster.settings("PROXIED"), bootstrap_timeout_ms=1000):
            pass
        cluster.proxies[0].heal()
        assert _read(cluster.settings("PROXIED"), topic, 1) == [b"thawed"]


def test_redis_restarts_empty(redis_server: RedisServer) -> None:
    """Killed or restarted, Redis comes back at its port without data."""
    with redis.Redis.from_url(redis_server.url()) as client:
        client.set("key", "value")
        redis_server.restart()
        assert client.dbsize() == 0
        client.set("key", "value")
        redis_server.kill()
        redis_server.start()
        assert client.dbsize() == 0


def test_redis_with_tls_and_acl_checks_both(tmp_path: Path) -> None:
    """Users may do what the ACL file grants, over TLS that the authority vouches for, and nothing else."""
    require("redis")
    certificates = make_certificates(tmp_path / "certificates")
    acl = ["user reader on >secret ~reputation:* +get +ping"]
    trust = {"ssl_ca_certs": str(certificates.ca)}
    with RedisServer(tmp_path, password=ADMIN_PASSWORD, acl=acl, certificates=certificates) as server:
        with redis.Redis.from_url(server.url(), **trust) as client:
            assert client.set("reputation:ann", "7")
        with redis.Redis.from_url(server.url("reader", "secret"), **trust) as client:
            assert client.get("reputation:ann") == b"7"
            with pytest.raises(NoPermissionError):
                client.set("reputation:ann", "8")
        wrong = server.url("reader", WRONG_PASSWORD)
        with redis.Redis.from_url(wrong, **trust) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with redis.Redis.from_url(server.url()) as client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_redis_keeps_data_when_told_to(tmp_path: Path) -> None:
    """With an append-only file a killed Redis comes back with its data."""
    require("redis")
    durable = RedisServer(tmp_path, config={"appendonly": "yes", "appendfsync": "always"})
    with durable as server, redis.Redis.from_url(server.url()) as client:
        client.set("key", "value")
        server.kill()
        server.start()
        assert client.get("key") == b"value"


def test_postgres_answers(postgres: PostgresServer) -> None:
    """The driver connects with a password and gets an answer."""
    with psycopg.connect(postgres.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_postgres_refuses_a_wrong_password(postgres: PostgresServer) -> None:
    """Connections are authenticated."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.dsn, password=WRONG_PASSWORD)


def test_a_killed_postgres_keeps_what_was_committed() -> None:
    """After SIGKILL and a start the committed row is there and the open transaction is not."""
    require("postgres")
    with PostgresServer({"log_statement": "all"}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (1)")
        with contextlib.closing(psycopg.connect(server.dsn)) as connection:
            connection.execute("INSERT INTO kept VALUES (2)")
            server.kill()
        server.start()
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT n FROM kept").fetchall() == [(1,)]


@pytest.fixture
def echo() -> Iterator[int]:
    """Return the port of a process that sends back what it gets, one connection after the other."""
    with socket.create_server((HOST, free_port())) as listener:
        port = listener.getsockname()[1]
        code = (
            "import socket\nlistener = socket.socket(fileno=0)\n"
            "while True:\n    connection, _ = listener.accept()\n"
            "    with connection:\n        while data := connection.recv(65536):\n            connection.sendall(data)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdin=listener.fileno()) as process:
            yield port
            process.kill()


def _connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=10)


def _exchange(connection: socket.socket, size: int = 4) -> float:
    """Send `size` bytes and read them back; return the seconds that took."""
    started = time.monotonic()
    connection.sendall(b"x" * size)
    left = size
    while left:
        received = len(connection.recv(65_536))
        assert received, "the other side closed"
        left -= received
    return time.monotonic() - started


def test_a_cut_proxy_resets_and_heals(echo: int) -> None:
    """cut() resets what is open and what comes; heal() lets new connections through."""
    with Proxy(echo) as proxy:
        with _connect(proxy.port) as connection:
            _exchange(connection)
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                _exchange(connection)
        with _connect(proxy.port) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
            _exchange(connection)
        proxy.heal()
        with _connect(proxy.port) as connection:
            _exchange(connection)


def test_a_proxy_delays_and_throttles(echo: int) -> None:
    """A delay is added once in each direction, however much is sent; a throttle bounds the rate; both can be ended."""
    with Proxy(echo) as proxy, _connect(proxy.port) as connection:
        assert _exchange(connection) < 0.2
        proxy.delay(0.2)
        assert 0.4 <= _exchange(connection, 100_000) < 2
        proxy.heal()
        proxy.throttle(400_000)
        assert 0.25 <= _exchange(connection, 100_000) < 2
        proxy.heal()
        assert _exchange(connection) < 0.2


def test_a_proxy_without_target_resets() -> None:
    """If nobody listens behind the proxy, the client sees its connection end."""
    ended = pytest.raises((ConnectionResetError, BrokenPipeError))
    with Proxy(free_port()) as proxy, _connect(proxy.port) as connection, ended:
        _exchange(connection)


def test_a_server_that_dies_while_starting_shows_its_log(tmp_path: Path) -> None:
    """The error says that it ended and what it said last."""
    server = Server("Shell", ["sh", "-c", "echo no room; exit 3"], tmp_path / "log", "ready")
    with pytest.raises(AssertionError, match=r"Shell ended while starting\n(.*\n)*no room"), server:
        pass


def test_a_server_dies_with_its_test_process(tmp_path: Path) -> None:
    """A test process killed with SIGKILL leaves no server behind."""
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.services.process import Server\n"
        "server = Server('Shell', ['sh', '-c', 'echo ready; exec sleep 60'], Path(sys.argv[1]), 'ready')\n"
        "server.start(); print(server.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout)
    wait_for("the server to be killed", lambda: not _exists(pid))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed orphan may stay a zombie where process 1 does not collect them.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_is_missing_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a bare machine the reason names programs and Debian packages; CI fails, elsewhere the test is skipped."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(requirements, "postgres_binary", shutil.which)
    assert missing("redis") == "redis needs redis-server, openssl: on Debian, `apt-get install redis-server openssl`"
    assert missing("postgres") == "postgres needs postgres: on Debian, `apt-get install postgresql`"
    assert str(missing("kafka")).endswith("`apt-get install openssl default-jre-headless maven`")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="redis-server"):
        require("redis")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="redis-server"):
        require("redis")
