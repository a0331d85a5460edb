"""A loopback server that answers whatever it is asked with the bytes of an input, at once or drop by drop."""

import contextlib
import socket
import threading
from collections.abc import Generator

_DRIP = b"\0drip\0"
_PAUSE_SECONDS = 0.05
_HOST = "127.0.0.1"


def dripping(data: bytes) -> bytes:
    """Return an input that the server sends byte by byte."""
    return _DRIP + data


@contextlib.contextmanager
def answering(data: bytes, *, polite: tuple[bytes, ...] | None = None) -> Generator[int]:
    """Yield the port of a server that sends `data` to each connection after its first bytes, and then closes it.

    With `polite`, commands of Redis, it goes on: a piece with these is answered by OK for each, others by `data`.
    """
    ended = threading.Event()
    with socket.create_server((_HOST, 0)) as server:
        server.settimeout(_PAUSE_SECONDS)
        thread = threading.Thread(target=_serve, args=(server, data, ended, polite), daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def _serve(server: socket.socket, data: bytes, ended: threading.Event, polite: tuple[bytes, ...] | None) -> None:
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_PAUSE_SECONDS)
                _answer(connection, data, ended, polite)


def _answer(connection: socket.socket, data: bytes, ended: threading.Event, polite: tuple[bytes, ...] | None) -> None:
    while not ended.is_set():
        try:
            asked = connection.recv(65_536)
        except TimeoutError:
            continue
        if not asked:
            return
        if welcome := sum(asked.count(command) for command in polite or ()):
            connection.sendall(b"+OK\r\n" * welcome)
            continue
        if data.startswith(_DRIP):
            _drip(connection, data.removeprefix(_DRIP), ended)
        else:
            connection.sendall(data)
        if polite is None:
            return


def _drip(connection: socket.socket, data: bytes, ended: threading.Event) -> None:
    for at in range(len(data)):
        if ended.wait(_PAUSE_SECONDS):
            return
        connection.sendall(data[at : at + 1])
