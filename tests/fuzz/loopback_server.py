"""A loopback server that responds to every request with the bytes of an input, at once or byte by byte."""

import contextlib
import socket
import threading
from collections.abc import Generator

_SLOW_MARKER = b"\0drip\0"
_SLOW_BYTES = 60
"""So many bytes of an input are sent slowly, the others at once: a mutation may make an input long."""
_PAUSE_SECONDS = 0.05
_HOST = "127.0.0.1"


def byte_by_byte(data: bytes) -> bytes:
    """Mark an input, so that the server sends it byte by byte."""
    return _SLOW_MARKER + data


@contextlib.contextmanager
def respond_with(data: bytes, *, ok_commands: tuple[bytes, ...] | None = None) -> Generator[int]:
    """Yield the port of a server that sends `data` on each connection after the first request, and closes it.

    With `ok_commands` (of Redis) the connection stays open: these commands get OK, all others `data`.
    """
    ended = threading.Event()
    with socket.create_server((_HOST, 0)) as server:
        server.settimeout(_PAUSE_SECONDS)
        thread = threading.Thread(target=_serve, args=(server, data, ended, ok_commands), daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def _serve(server: socket.socket, data: bytes, ended: threading.Event, ok_commands: tuple[bytes, ...] | None) -> None:
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_PAUSE_SECONDS)
                _respond(connection, data, ended, ok_commands)


def _respond(
    connection: socket.socket, data: bytes, ended: threading.Event, ok_commands: tuple[bytes, ...] | None
) -> None:
    while not ended.is_set():
        try:
            request = connection.recv(65_536)
        except TimeoutError:
            continue
        if not request:
            return
        if accepted := sum(request.count(command) for command in ok_commands or ()):
            connection.sendall(b"+OK\r\n" * accepted)
            continue
        if data.startswith(_SLOW_MARKER):
            _send_slowly(connection, data.removeprefix(_SLOW_MARKER), ended)
        else:
            connection.sendall(data)
        if ok_commands is None:
            return


def _send_slowly(connection: socket.socket, data: bytes, ended: threading.Event) -> None:
    for at in range(min(len(data), _SLOW_BYTES)):
        if ended.wait(_PAUSE_SECONDS):
            return
        connection.sendall(data[at : at + 1])
    connection.sendall(data[_SLOW_BYTES:])
