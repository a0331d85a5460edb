"""The test servers do what other tests rely on, and leave nothing behind.

Tests of the Kafka server are in `services/test_kafka_cluster.py`.
"""

import contextlib
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from redis.exceptions import NoPermissionError

from tests.services import requirements
from tests.services.certificates import make_certificates
from tests.services.ports import HOST, free_port
from tests.services.postgres_server import PostgresServer
from tests.services.process import Server
from tests.services.programs import extend_path
from tests.services.proxy import Proxy
from tests.services.redis_server import RedisServer
from tests.services.requirements import missing, not_run, require
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.services
REPOSITORY = Path(__file__).resolve().parents[1]
ADMIN_PASSWORD = "admin"  # noqa: S105 # of a server that runs for one test
WRONG_PASSWORD = "wrong"  # noqa: S105 # opens nothing
_IN_THE_BACKGROUND = """
import signal, sys
from pathlib import Path
from unittest.mock import Mock
signal.signal(signal.SIGINT, signal.SIG_IGN)
from dagster._utils.interrupts import capture_interrupts
from tests.conftest import pytest_configure
from tests.services.process import Server
pytest_configure(Mock())
with capture_interrupts():
    pass
server = Server("shell", ["sh", "-c", "echo ready; exec sleep 600"], Path(sys.argv[1]), "ready")
server.start()
(ignored,) = (line for line in open(f"/proc/{server.pid}/status") if line.startswith("SigIgn"))
server.kill()
assert not int(ignored.split()[1], 16) >> signal.SIGTERM - 1 & 1, ignored
"""


def test_redis_restarts_empty(redis_server: RedisServer) -> None:
    """Killed or restarted, Redis runs again on the same port without data."""
    with redis.Redis.from_url(redis_server.url()) as client:
        client.set("key", "value")
        redis_server.restart()
        assert client.dbsize() == 0
        client.set("key", "value")
        redis_server.kill()
        redis_server.start()
        assert client.dbsize() == 0


def test_a_server_is_stopped_in_a_run_in_the_background(tmp_path: Path) -> None:
    """Its processes begin with SIGINT ignored, and Dagster makes SIGTERM what SIGINT is: no server inherits that."""
    subprocess.run([sys.executable, "-c", _IN_THE_BACKGROUND, tmp_path / "log"], check=True, cwd=REPOSITORY)


def test_a_server_that_does_not_stop_fails_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, which leaves other data than a stop: a broker recovers its logs."""
    monkeypatch.setattr("tests.services.process.PATIENCE_SECONDS", 0.1)
    deaf = ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 1; done"]
    server = Server("deaf", deaf, tmp_path / "log", "ready")
    server.launch()
    server.wait_until_ready(60)
    with pytest.raises(AssertionError, match="deaf did not stop"):
        server.stop()
    assert not server.is_running


def test_redis_with_tls_and_acl_checks_both(tmp_path: Path) -> None:
    """Users can do only what the ACL file grants, over TLS with a trusted certificate."""
    require("redis-tls")
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


def test_redis_keeps_data_with_an_append_only_file(tmp_path: Path) -> None:
    """With an append-only file a killed Redis comes back with its data."""
    require("redis")
    durable = RedisServer(tmp_path, config={"appendonly": "yes", "appendfsync": "always"})
    with durable as server, redis.Redis.from_url(server.url()) as client:
        client.set("key", "value")
        server.kill()
        server.start()
        assert client.get("key") == b"value"


def test_postgres_answers(postgres: PostgresServer) -> None:
    """The driver connects with a password and runs a query."""
    with psycopg.connect(postgres.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_postgres_refuses_a_wrong_password(postgres: PostgresServer) -> None:
    """Connections are authenticated."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.dsn, password=WRONG_PASSWORD)


def test_a_killed_postgres_keeps_what_was_committed() -> None:
    """After SIGKILL of a busy server and a restart, the committed row exists and the open transaction does not."""
    require("postgres")
    with PostgresServer({"log_statement": "all"}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE numbers (n int)")
            connection.execute("INSERT INTO numbers VALUES (1)")
        with contextlib.closing(psycopg.connect(server.dsn)) as connection:
            connection.execute("INSERT INTO numbers VALUES (2)")
            connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")
            server.kill()
        server.start()
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT n FROM numbers").fetchall() == [(1,)]


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(65_536):
                self.request.sendall(data)


@pytest.fixture
def echo() -> Iterator[int]:
    """Return the port of an echo server."""
    with socketserver.ThreadingTCPServer((HOST, free_port()), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=PATIENCE_SECONDS)


def _ended() -> Any:
    return pytest.raises((ConnectionResetError, BrokenPipeError))


def _exchange(connection: socket.socket, size: int = 4) -> float:
    """Send `size` bytes and read them back; return the seconds taken."""
    started = time.monotonic()
    connection.sendall(b"x" * size)
    remaining = size
    while remaining:
        received = len(connection.recv(65_536))
        assert received, "the other side closed"
        remaining -= received
    return time.monotonic() - started


def _fastest(connection: socket.socket, size: int) -> float:
    """Return the seconds of the fastest of three exchanges: a busy machine slows some of them."""
    return min(_exchange(connection, size) for _ in range(3))


def test_a_cut_proxy_resets_and_heals(echo: int) -> None:
    """cut() resets open and new connections; heal() lets new connections through."""
    with Proxy(echo) as proxy:
        with _connect(proxy.port) as connection:
            _exchange(connection)
            proxy.cut()
            with _ended():
                _exchange(connection)
        with _ended(), _connect(proxy.port) as connection:
            _exchange(connection)
        proxy.heal()
        with _connect(proxy.port) as connection:
            _exchange(connection)


def test_a_proxy_delays_and_throttles(echo: int) -> None:
    """A delay is added once per direction, whatever the size; a throttle limits the rate; heal() ends both."""
    with Proxy(echo) as proxy, _connect(proxy.port) as connection:
        assert _fastest(connection, 4) < 0.2
        proxy.delay(0.2)
        assert 0.4 <= _fastest(connection, 100_000) < 2
        proxy.heal()
        proxy.throttle(400_000)
        assert 0.25 <= _fastest(connection, 100_000) < 2
        proxy.heal()
        assert _fastest(connection, 4) < 0.2


def test_a_proxy_without_target_resets() -> None:
    """If no server listens behind the proxy, the client's connection is reset."""
    with Proxy(free_port()) as proxy, _ended(), _connect(proxy.port) as connection:
        _exchange(connection)


def test_a_server_that_dies_while_starting_shows_its_log(tmp_path: Path) -> None:
    """The error names the server and has the end of its log."""
    server = Server("Shell", ["sh", "-c", "echo no room; exit 3"], tmp_path / "log", "ready")
    with pytest.raises(AssertionError, match=r"Shell ended while starting\n(.*\n)*no room"), server:
        pass


def test_a_server_dies_with_its_test_process(tmp_path: Path) -> None:
    """A test process killed with SIGKILL leaves no server behind, not even a child in a session of its own."""
    log = tmp_path / "log"
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.services.process import Server\n"
        "command = 'setsid sleep 600 & echo $$ $!; echo ready; wait'\n"
        "Server('Shell', ['sh', '-c', command], Path(sys.argv[1]), 'ready').start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(log)], cwd=REPOSITORY, timeout=PATIENCE_SECONDS, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    server, child = (int(pid) for pid in log.read_text().splitlines()[0].split())
    wait_for("server and child to be killed", lambda: not _exists(server) and not _exists(child))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed orphan may stay a zombie if process 1 does not reap it.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_is_missing_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a bare machine the reason names programs and Debian packages; CI fails, elsewhere the test is skipped."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(requirements, "postgres_binary", shutil.which)
    tls = missing("redis-tls")
    assert tls == "redis-tls needs redis-server, openssl: on Debian, `apt-get install redis-server openssl`"
    assert missing("postgres") == "postgres needs postgres: on Debian, `apt-get install postgresql`"
    assert str(missing("kafka")).endswith("`apt-get install openssl default-jre-headless`")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="redis-server"):
        require("redis-tls")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="redis-server"):
        require("redis-tls")


def test_redis_is_the_packaged_valkey_where_none_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-server, all tests of Redis but those of TLS run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing("redis") is None
    with RedisServer(tmp_path, password=ADMIN_PASSWORD) as server, redis.Redis.from_url(server.url()) as client:
        assert client.ping()


def test_the_last_line_says_what_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the skipped tests by missing server; tests skipped for other reasons are not counted."""
    monkeypatch.setenv("PATH", str(tmp_path))
    texts = [f"('a.py', 1, 'Skipped: {missing(service)}')" for service in ("mariadb", "redis-tls", "mariadb")]
    line = "not run: 3 tests, for want of redis-tls, mariadb; `make services` as root, then `make test` again runs them"
    assert not_run([*texts, "('b.py', 1, 'Skipped: the data are not at /x')"]) == line
    assert not_run(["('b.py', 1, 'Skipped: the data are not at /x')"]) == ""


def test_the_folders_of_administrators_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal user of Debian has no /usr/sbin on the PATH, where mariadbd is; what was there stays first."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", "")
    extend_path()
    extended = os.environ["PATH"].split(os.pathsep)
    assert "/usr/sbin" in extended
    assert extended.index(str(tmp_path)) < extended.index("/usr/sbin")
    extend_path()
    assert os.environ["PATH"].split(os.pathsep) == extended
