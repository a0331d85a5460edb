"""Every port that karmalake opens listens on 127.0.0.1 and reveals nothing without authorization."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from pipelines.local import services
from pipelines.local.services import start, stop
from pipelines.refresh import refresh_warehouse
from pipelines.serving.client import connect
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started
from tests.conftest import REPOSITORY
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.emit.outboxes import create_outbox, disposed, sqlite_url
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_crashes import environment

_OPENS = re.compile(
    r"create_server\(|HTTPServer\b|uvicorn\.(?!protocols)|socket\.(listen|bind)\(|--listener-url|\"--port\""
)
_WHERE = {
    "pipelines/pages/server.py": "karmalake dashboard, dagster",
    "pipelines/monitoring/server.py": "karmalake stream, relay, notify",
    "pipelines/local/services.py": "karmalake local start",
    "examples/service.py": "the example's service, for its own tests",
    "examples/foreign/teams/registry.py": "the example's schema registry, for its own test",
    "examples/system.py": "the example's servers, for its own tests",
}
"""Modules that open ports, with their command; `rebuild --engine spark` opens Spark's."""

pytestmark = pytest.mark.slow


def test_every_place_that_opens_a_port_is_known() -> None:
    """A new server must be added here, and its command below."""
    sources = [path for folder in ("pipelines", "assets", "examples") for path in (REPOSITORY / folder).rglob("*.py")]
    found = {str(path.relative_to(REPOSITORY)) for path in sources if _OPENS.search(path.read_text(encoding="utf-8"))}
    assert found <= _WHERE.keys(), found - _WHERE.keys()


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Return settings of a small world."""
    bus = with_ingest(settings)
    send(bus, valid_records(range(20)))
    drain_all(bus)
    refresh_warehouse(bus)
    return bus


def _variables(settings: Settings, folder: Path) -> dict[str, str]:
    return environment(settings) | {
        "DAGSTER_HOME": str(folder),
        "KARMALAKE_RELAY_DATABASE_URL": _outbox(folder),
        "PYTHONUNBUFFERED": "1",
    }


def _outbox(folder: Path) -> str:
    url = sqlite_url(folder)
    with disposed(url) as engine:
        create_outbox(engine)
    return url.render_as_string(hide_password=False)


@contextmanager
def _running(variables: dict[str, str], *command: str) -> Iterator[psutil.Process]:
    with Started([*KARMALAKE, *command], env=variables, stdout=subprocess.DEVNULL) as process:
        family = psutil.Process(process.pid)
        try:
            yield family
        finally:
            for member in family.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.send_signal(signal.SIGKILL)


def _listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Return the addresses on which a process and its children listen."""
    found: list[tuple[str, int]] = []
    for member in (process, *_children(process)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # one that is ending, which listens no more
            connections = member.net_connections("inet")
            found += [(one.laddr.ip, one.laddr.port) for one in connections if one.status == psutil.CONN_LISTEN]
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _response(port: int, request: bytes) -> bytes:
    """Return the response until the server closes the connection, at most for two seconds."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as client, suppress(OSError):
        client.sendall(request)
        while data := client.recv(65_536):
            received += data
    return received


def _http(host: str, method: str = "GET", path: str = "/", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


_QUERY = "/graphql?query=%7Bversion%7D"
_WEBSOCKET = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")


def _unauthorized_requests(port: int) -> Iterator[bytes]:
    """Yield unauthorized requests: another host name, another origin, no token, a form post, garbage."""
    own = f"127.0.0.1:{port}"
    for path in ("/", "/metrics", "/healthz", "/ws?session_id=s_1", "/api/status", "/jobs/", "/server_info", _QUERY):
        yield _http("evil.example", "GET", path)
        yield _http(f"evil.example:{port}", "GET", path, "Origin: http://evil.example")
        yield _http("evil.example", "POST", path, "Content-Length: 0")
    for path in ("/ws?session_id=s_1", "/graphql"):
        yield _http(own, "GET", path, "Origin: http://evil.example", *_WEBSOCKET)
        yield _http(own, "GET", path, f"Origin: http://{own}", *_WEBSOCKET)
    yield _http(own, "GET", "/")
    yield _http(own, "GET", _QUERY)
    yield _http(own, "POST", _QUERY, "Content-Length: 0")
    yield _http(own, "POST", "/", "Content-Length: 0", "Origin: http://evil.example")
    yield from (b"\0" * 300, b"garbage\r\n\r\n", b"INFO\r\nKEYS *\r\nQUIT\r\n", os.urandom(300))


def _assert_rejects_unauthorized(process: psutil.Process, expected: int) -> None:
    """Assert that a process listens on this many ports of 127.0.0.1, and rejects all unauthorized requests."""
    places = wait_for("the ports", lambda: len(found := _listening(process)) >= expected and found)
    assert len(places) == expected
    for ip, port in places:
        assert ip.removeprefix("::ffff:") == "127.0.0.1"
        requests = [*_unauthorized_requests(port)]
        with ThreadPoolExecutor(16) as together:  # a server that ignores a request keeps the connection
            answers = [*together.map(partial(_response, port), requests)]
        for request, answer in zip(requests, answers, strict=True):
            head, _, body = answer.partition(b"\r\n\r\n")
            if answer.startswith(b"HTTP/"):
                assert int(head.split()[1]) in {400, 401, 403, 404, 405, 421, 505}, (request, head)
            else:
                assert re.fullmatch(rb"(-(NOAUTH|ERR)[^\r\n]*\r\n|\+OK\r\n)*|bad request\n", answer), (request, answer)
            assert len(body) < 200, (request, body)
            assert not re.search(rb"karmalake_[a-z]+_|<html|redis_version|access-control", answer, re.IGNORECASE)
    assert len(_listening(process)) == expected


@contextmanager
def _silent(port: int) -> Iterator[list[socket.socket]]:
    """Hold more connections than any of our servers keeps: two of three say nothing, the others begin a request."""
    with ExitStack() as stack:
        held: list[socket.socket] = []
        for number in range(300):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)))
            held[-1].settimeout(1)
            with suppress(OSError):  # a server may have closed it already
                held[-1].sendall(b"GET / HTTP/1.1\r\nHo" if number % 3 == 0 else b"")
        yield held


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _assert_silence_locks_no_reader_out(port: int, request: bytes) -> None:
    """Assert that a port answers while 300 connections send nothing, and closes them after a while."""
    wait_for("the first answer", lambda: b" 200 " in _response(port, request)[:20])
    with _silent(port) as held:
        assert b" 200 " in _response(port, request)[:20]
        for connection in held:
            assert wait_for("its end", lambda one=connection: _is_closed(one))


@pytest.mark.parametrize(
    ("command", "option", "path"),
    [
        ("dashboard", "--port", "/"),
        ("dagster", "--port", "/server_info"),
        ("stream", "--metrics-port", "/metrics"),
        ("ingest", "--metrics-port", None),
        ("relay", "--metrics-port", None),
    ],
    ids=("dashboard", "dagster", "stream", "ingest", "relay"),
)
def test_a_command_that_serves(world: Settings, tmp_path: Path, command: str, option: str, path: str | None) -> None:
    """The pages, and the metrics of long-lived processes, whose server is that of `stream`, also in `notify`.

    Unauthorized requests are rejected, and silent connections lock no reader out.
    """
    token = "a-token-of-the-test"  # noqa: S105 - of no server
    tokens = {"KARMALAKE_DASHBOARD_TOKEN": token, "KARMALAKE_DAGSTER_TOKEN": token}
    with _running(_variables(world, tmp_path) | tokens, command, option, "0") as process:
        _assert_rejects_unauthorized(process, 1)
        if path is not None:
            ((_, port),) = _listening(process)
            request = _http("127.0.0.1", "GET", path, f"Authorization: Bearer {token}")
            _assert_silence_locks_no_reader_out(port, request)


def test_silent_connections_to_the_embedded_services(tmp_path: Path) -> None:
    """Broker and cache answer their own clients beside 300 connections that send nothing."""
    settings = Settings(data_dir=tmp_path / "data")
    start(settings)
    try:
        local = services.with_local_endpoints(settings)
        with _silent(int(str(local.kafka.bootstrap_servers).rpartition(":")[2])):
            send(local, valid_records(range(3)))
        assert local.redis.url
        with _silent(urlsplit(local.redis.url.get_secret_value()).port or 0):
            assert connect(local.redis).ping()
    finally:
        stop(settings)


def test_no_port_is_opened_unless_configured(world: Settings, tmp_path: Path) -> None:
    """Metrics are served only if a port is configured."""
    with _running(_variables(world, tmp_path), "stream") as process:
        wait_for("its work", lambda: len(process.net_connections("inet")) > 0)
        assert _listening(process) == []


def test_the_embedded_services(tmp_path: Path) -> None:
    """The cache requires its password; the broker ignores everything but Kafka requests, and keeps running."""
    settings = Settings(data_dir=tmp_path / "data")
    started = start(settings)
    try:
        for service in (started.broker, started.cache):
            assert service is not None
            _assert_rejects_unauthorized(psutil.Process(service.process.pid), 1)
        assert services.status(settings) == services.LocalServices(started.broker, started.cache)
    finally:
        stop(settings)


_SPARK = """
from pipelines.reputation.spark.session import open_session
with open_session() as spark:
    print(spark.sparkContext.uiWebUrl, flush=True)
    input()
"""


def test_spark_on_this_machine() -> None:
    """By default Spark shows no web page, and its ports listen only on 127.0.0.1."""
    require("java")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    program = [sys.executable, "-c", _SPARK]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, env=variables, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"None\n"
        places = _listening(psutil.Process(process.pid))
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait() == 0
    assert places
    assert {ip.removeprefix("::ffff:") for ip, _ in places} == {"127.0.0.1"}
