"""Connections of a page's server with clients that read slowly, or not at all."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import repeat

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from pipelines.pages import connections
from pipelines.pages.connections import BoundedProtocol
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_CONNECTIONS = 4
_BYTES = 24_000_000


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    body = b"x" * (_BYTES if scope["path"] == "/long" else 100)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Serve answers with a shorter deadline to few connections."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            _answer, http=BoundedProtocol, log_level="error", lifespan="off", limit_concurrency=_CONNECTIONS + 1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = server.force_exit = True
        thread.join(PATIENCE_SECONDS)


def _connect(port: int) -> socket.socket:
    """Return a connection that receives little ahead of what is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.connect(("127.0.0.1", port))
    connection.settimeout(1)
    return connection


def _status(port: int) -> bytes:
    with suppress(OSError), _connect(port) as connection:
        connection.sendall(_REQUEST)
        return connection.recv(100)[:12]
    return b""


@pytest.mark.slow
def test_a_slow_reader_gets_the_whole_answer(port: int) -> None:
    """One part of it that takes several times the deadline to send is no reason to close the connection."""
    with _connect(port) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.sendall(_REQUEST.replace(b"/ ", b"/long ", 1))
        received = 0
        while part := connection.recv(40_000) if received < _BYTES else b"":
            received += len(part)
            time.sleep(len(part) / 3_000_000)
    assert received >= _BYTES


@pytest.mark.slow
def test_clients_that_read_no_answer_lock_no_reader_out(port: int) -> None:
    """They send requests until the server takes no more, and are closed after the deadline, or for another client."""
    with ExitStack() as stack:
        held = [stack.enter_context(_connect(port)) for _ in range(_CONNECTIONS)]
        for connection in held:
            with suppress(OSError):  # full, or already closed
                for requests in repeat(_REQUEST * 100):
                    connection.sendall(requests)
        wait_for("an answer", lambda: _status(port) == b"HTTP/1.1 200")
        for connection in held:
            wait_for("its end", lambda one=connection: _is_reset(one))


def _is_reset(connection: socket.socket) -> bool:
    """Return whether a client that reads nothing learns that its connection is closed."""
    try:
        connection.send(b"G")
    except TimeoutError:
        return False
    except OSError:
        return True
    return False
