"""The metrics server: which requests it answers, and the resources that a client can use."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Metric

from pipelines.monitoring import server
from pipelines.monitoring.health import Health
from pipelines.settings import MetricsSettings
from tests.services.waiting import PATIENCE_SECONDS, wait_for


@pytest.fixture
def address() -> Iterator[str]:
    registry = CollectorRegistry()
    Counter("said", "A metric.", registry=registry).inc()
    settings = MetricsSettings(port=0, allowed_hosts=("karmalake.monitoring.svc",))
    with server.serve_metrics(settings, registry, Health(["ingest"], 60)) as address:
        yield address


def _sent(address: str, request: bytes) -> bytes:
    """Return the whole response to the bytes of a request."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as client:
        with suppress(OSError):  # the server has read enough, and is gone
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        received = iter(lambda: _received(client), b"")
        return b"".join(received)


def _is_disconnected(client: socket.socket) -> bool:
    """Send slowly, and return whether the server has closed the connection."""
    try:
        client.sendall(b"G")
        return client.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(65_536)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9108", "10.1.2.3", "[::1]:9108", "localhost", "karmalake.monitoring.svc:80"]
)
def test_a_scrape_is_answered(address: str, host: str) -> None:
    """Requests by IP address, by localhost and by an allowed name are answered, whatever the port."""
    answer = httpx.get(f"http://{address}/metrics", headers={"Host": host})
    assert (answer.status_code, "said_total 1.0" in answer.text) == (200, True)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "127.1", "2130706433", "", "a b", "[::1", "x@127.0.0.1"]
)
def test_another_host_name_gets_nothing(address: str, host: str) -> None:
    """A host name that resolves here (DNS rebinding) is refused on every path."""
    for path in ("/metrics", "/healthz", "/readyz", "/"):
        answer = _sent(address, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.0 421 "), answer
        assert b"said_total" not in answer
        assert b"ok\n" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "<script>"])
def test_other_methods_are_refused(address: str, method: str) -> None:
    """With 405 and the allowed method; nothing of the request is repeated."""
    answer = _sent(address, f"{method} /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 405 ")
    assert b"Allow: GET" in answer
    assert method.encode() not in answer.replace(b"HTTP", b"")


@pytest.mark.parametrize(
    "request_",
    [b"", b"\0" * 500, b"garbage\r\n\r\n", b"GET /metrics\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b"GET"],
)
def test_garbage_gets_no_metrics(address: str, request_: bytes) -> None:
    """Bytes that are not a request, or name no host, get a status at most."""
    assert b"said_total" not in _sent(address, request_)
    assert httpx.get(f"http://{address}/readyz").status_code == 503


def test_a_request_head_that_is_too_long_is_refused(address: str) -> None:
    """Only a limited number of bytes is read; the connection ends without a response."""
    line = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    assert b"200 OK" in _sent(address, line + b"X: " + b"a" * 10_000 + b"\r\n\r\n")
    assert b"200" not in _sent(address, line + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n")
    assert b"200" not in _sent(address, line + b"X: y\r\n" * 100_000 + b"\r\n")


@pytest.mark.slow
def test_slow_clients_do_not_block_others(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stay few and a scrape is answered; connections of slow clients are closed at the deadline."""
    monkeypatch.setattr(server, "_DEADLINE_SECONDS", 1.0)
    host, _, port = address.partition(":")
    others = set(threading.enumerate())  # of the servers that other tests have left in this process
    with ExitStack() as clients:
        slow = [
            clients.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS))
            for _ in range(200)
        ]
        assert httpx.get(f"http://{address}/metrics").status_code == 200
        wait_for("few threads", lambda: len(set(threading.enumerate()) - others) < server._MAX_CONNECTIONS + 20)
        wait_for("the last one to be sent away", lambda: _is_disconnected(slow[-1]))
    wait_for("no thread is left", lambda: not set(threading.enumerate()) - others)


class _SlowCollector:
    """Metrics that take as long to collect as the test wants."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_SECONDS)
        return []


def test_connections_without_a_request_replace_none_with_one() -> None:
    """A scrape is answered, however many connections are opened while its answer is made."""
    slow, registry = _SlowCollector(), CollectorRegistry()
    registry.register(slow)
    with (
        server.serve_metrics(MetricsSettings(port=0), registry, Health(["ingest"], 60)) as address,
        ThreadPoolExecutor(1) as thread,
        ExitStack() as clients,
    ):
        host, _, port = address.partition(":")
        scrape = thread.submit(httpx.get, f"http://{address}/metrics", timeout=PATIENCE_SECONDS)
        try:
            assert slow.begun.wait(PATIENCE_SECONDS)
            silent = [
                clients.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS))
                for _ in range(2 * server._MAX_CONNECTIONS)
            ]
            wait_for("the last to be replaced", lambda: _is_disconnected(silent[server._MAX_CONNECTIONS]))
        finally:
            slow.may_end.set()
        assert scrape.result().status_code == 200
