"""The server of the dashboard: the page in marimo's run mode, where a visitor can look and cannot run code.

Plain HTTP without a password: it listens on 127.0.0.1 unless told otherwise.
"""

import importlib
import socket
from pathlib import Path

import marimo
import uvicorn

from pipelines.errors import ConfigurationError

_APP = Path(__file__).with_name("app.py")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; port 0 takes a free one. Raises ConfigurationError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"the dashboard cannot listen at {host}:{port}: {error}; choose another --port"
        ) from error


def serve(listening: socket.socket) -> None:
    """Serve the page until SIGTERM or Ctrl-C, then close the socket."""
    importlib.import_module("pipelines.dashboard.sections")  # now, not when the first visitor waits for it
    page = marimo.create_asgi_app(quiet=True).with_app(path="", root=str(_APP)).build()
    config = uvicorn.Config(page, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])
