"""An exchange ends by its deadline and within its size limit, whatever the server does (`isolated`)."""

import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from pipelines.boundary.http import HttpClient, HttpResponse, excerpt
from pipelines.errors import ConfigurationError, TransientError

_DEADLINE = 0.6
_SLACK = 10.0
"""A busy machine's: far below what any of these servers would hold a read for."""
_OK = b"HTTP/1.1 200 OK\r\n"
_Serve = Callable[[socket.socket, Event], None]


@contextmanager
def _server(serve: _Serve) -> Generator[str]:
    """Yield the address of a server that runs `serve` for each connection, with an event that is set at the end."""
    ended = Event()
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while not ended.is_set():
                connection, _ = listening.accept()
                accepted.append(connection)
                with connection:
                    try:
                        serve(connection, ended)
                    except OSError:
                        continue  # the client has closed the connection

        thread = Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            for connection in accepted:
                _end(connection)
            with socket.create_connection(listening.getsockname()):
                pass
            thread.join()


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already


@pytest.fixture
def client() -> Iterator[HttpClient]:
    """Return a client that is closed with the test."""
    client = HttpClient()
    yield client
    client.close()


def _get(client: HttpClient, url: str, max_bytes: int = 1_000, content: bytes = b"") -> HttpResponse:
    return client.exchange(httpx.Request("POST", url, content=content), _DEADLINE, max_bytes)


def _drip(start: bytes) -> _Serve:
    def serve(connection: socket.socket, ended: Event) -> None:
        connection.recv(65_536)
        connection.sendall(start)
        while not ended.wait(0.1):
            connection.sendall(b"1")

    return serve


def _respond(answer: bytes) -> _Serve:
    def serve(connection: socket.socket, _: Event) -> None:
        while connection.recv(65_536):
            connection.sendall(answer)

    return serve


def _silent(_: socket.socket, ended: Event) -> None:
    ended.wait()


def _informs(connection: socket.socket, ended: Event) -> None:
    connection.recv(65_536)
    while not ended.is_set():
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serve", "scheme", "content"),
    [
        (_silent, "http", b""),
        (_silent, "https", b""),
        (_silent, "http", bytes(50_000_000)),
        (_drip(b""), "http", b""),
        (_drip(_OK + b"X-Slow: "), "http", b""),
        (_informs, "http", b""),
    ],
    ids=["no answer", "no TLS", "takes no request", "status", "headers", "informational answers"],
)
def test_one_deadline_for_everything_before_the_status(
    client: HttpClient, serve: _Serve, scheme: str, content: bytes
) -> None:
    """Single bytes do not extend the deadline."""
    with _server(serve) as address:
        began = time.monotonic()
        with pytest.raises(TransientError, match=r"no complete answer within 0\.6 s"):
            _get(client, f"{scheme}://{address}/", content=content)
        assert _DEADLINE <= time.monotonic() - began < _DEADLINE + _SLACK


@pytest.mark.parametrize(
    "start", [b"Content-Length: 1000\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n"]
)
def test_a_body_that_drips_is_cut_and_the_status_counts(client: HttpClient, start: bytes) -> None:
    """The status is returned although the body is incomplete."""
    with _server(_drip(_OK + start)) as address:
        began = time.monotonic()
        answer = _get(client, f"http://{address}/")
        assert _DEADLINE <= time.monotonic() - began < _DEADLINE + _SLACK
    assert (answer.status, answer.truncation) == (200, "no complete answer within 0.6 s")
    assert answer.body.startswith(b"1")


def test_a_body_is_cut_at_its_bound(client: HttpClient) -> None:
    """No more than the limit is kept, even if the declared size exceeds memory."""
    endless = _OK + b"Content-Length: 99999999999\r\n\r\n" + bytes(100_000)
    with _server(_respond(endless)) as address:
        answer = _get(client, f"http://{address}/", max_bytes=5_000)
    assert (answer.body, answer.truncation) == (bytes(5_000), "the answer is longer than 5000 bytes")


def test_a_body_that_breaks_off_is_cut(client: HttpClient) -> None:
    """An incomplete body is always marked as incomplete."""

    def serve(connection: socket.socket, _: Event) -> None:
        connection.recv(65_536)
        connection.sendall(_OK + b"Content-Length: 10\r\n\r\n123")

    with _server(serve) as address:
        answer = _get(client, f"http://{address}/")
    assert (answer.status, answer.body) == (200, b"123")
    assert "RemoteProtocolError" in str(answer.truncation)


@pytest.mark.parametrize(
    "nonsense", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 99999 x\r\n\r\n", _OK + b"a" * 300_000, b"\0" * 99]
)
def test_invalid_http_is_an_outage(client: HttpClient, nonsense: bytes) -> None:
    """Endless headers or an invalid status: one error, without control characters."""
    with _server(_respond(nonsense)) as address, pytest.raises(TransientError) as raised:
        _get(client, f"http://{address}/")
    assert str(raised.value).isprintable()


def test_nothing_is_decompressed_followed_or_remembered(client: HttpClient) -> None:
    """A compression bomb stays small, a redirect is not followed, and a cookie is not sent back."""
    received: list[bytes] = []
    head = b"HTTP/1.1 302 Found\r\nContent-Encoding: gzip\r\nSet-Cookie: a=b\r\nLocation: http://%s/else\r\n"

    def serve(connection: socket.socket, _: Event) -> None:
        while request := connection.recv(65_536):
            received.append(request)
            connection.sendall(head % address.encode() + b"Content-Length: 3\r\n\r\n\x1f\x8b\x08")

    with _server(serve) as address:
        answers = [_get(client, f"http://{address}/") for _ in range(2)]
    assert [(answer.status, answer.body, answer.truncation) for answer in answers] == [(302, b"\x1f\x8b\x08", None)] * 2
    assert len(received) == 2
    assert b"cookie" not in received[1].lower()


def test_a_connection_is_used_again(client: HttpClient) -> None:
    """Many exchanges need one handshake."""
    connections: list[socket.socket] = []

    def serve(connection: socket.socket, ended: Event) -> None:
        connections.append(connection)
        _respond(_OK + b"Content-Length: 2\r\n\r\nok")(connection, ended)

    with _server(serve) as address:
        assert [_get(client, f"http://{address}/").body for _ in range(5)] == [b"ok"] * 5
        assert len(connections) == 1


def test_a_certificate_is_checked(client: HttpClient) -> None:
    """A server with an invalid certificate gets no request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def serve(connection: socket.socket, _: Event) -> None:
        with context.wrap_socket(connection, server_side=True):
            pytest.fail("the handshake succeeded without a certificate")

    with _server(serve) as address, pytest.raises(TransientError, match="ConnectError"):
        _get(client, f"https://{address}/")


def test_names_that_hang_delay_no_other_exchange(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver answers no deadline: more look-ups may hang than a machine has processors (`isolated`)."""
    released, resolve = Event(), socket.getaddrinfo
    hanging = []

    def look_up(host: bytes, *options: Any, **more: Any) -> Any:
        if host == b"gone.example":
            hanging.append(host)
            released.wait()
        return resolve(host, *options, **more)

    def fail(_: int) -> None:
        with pytest.raises(TransientError, match="no complete answer within"):
            _get(client, "http://gone.example/")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with ThreadPoolExecutor(40) as others, _server(_respond(_OK + b"Content-Length: 2\r\n\r\nok")) as address:
        try:
            list(others.map(fail, range(40)))
            url = f"http://{address}/".replace("127.0.0.1", "localhost")
            assert client.exchange(httpx.Request("POST", url), _SLACK, 1_000).body == b"ok"
            assert len(hanging) == 40
        finally:
            released.set()


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("ALL_PROXY", "socks5://me:hidden@127.0.0.1:1080", "SOCKS"),
        ("https_proxy", "ftp://me:hidden@h", "like http://host:port"),
        ("HTTP_PROXY", "http://me:hid/den@h:1", "like http://host:port"),
        ("no_proxy", "[::1]", "no brackets"),
        ("SSL_CERT_FILE", "/no/such/file", "certificates cannot be read"),
    ],
)
def test_an_unusable_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, fault: str) -> None:
    """Without the password of a proxy: it is a setting of the machine, and no defect."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name}.* in the environment: .*{fault}") as caught:
        HttpClient()
    assert "hid" not in str(caught.value)


def test_an_excerpt_has_no_control_characters() -> None:
    """Escape sequences, direction marks and line breaks are replaced, and a long text is truncated."""
    assert excerpt("a\x1b[31m\u202eb\r\nc\x9b") == "a?[31m?b??c?"
    assert excerpt("x" * 81) == "x" * 80 + "..."
