"""The server of the dashboard: the page in marimo's run mode, where a visitor can look and cannot run code.

Plain HTTP: it listens on 127.0.0.1 unless told otherwise. Who is let in, `door.py` decides.
"""

import importlib
import secrets
import socket
from pathlib import Path

import marimo
import uvicorn

from pipelines.dashboard.door import QUERY, Door
from pipelines.errors import ConfigurationError
from pipelines.settings import DashboardSettings

_APP = Path(__file__).with_name("app.py")
_CONNECTIONS = 200
"""At a time; more are refused, so that slow clients hold no more than these."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; port 0 takes a free one. Raises ConfigurationError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"the dashboard cannot listen at {host}:{port}: {error}; choose another --port"
        ) from error


def address_of(host: str, listening: socket.socket, token: str | None) -> str:
    """Return the address to open; without the token where the reader knows it already."""
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{listening.getsockname()[1]}/{f'?{QUERY}={token}' if token else ''}"


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(32)


def serve(listening: socket.socket, host: str, token: str, settings: DashboardSettings) -> None:
    """Serve the page to those who know the token until SIGTERM or Ctrl-C, then close the socket."""
    importlib.import_module("pipelines.dashboard.sections")  # now, not when the first visitor waits for it
    page = marimo.create_asgi_app(quiet=True).with_app(path="", root=str(_APP)).build()
    door = Door(page, token, (host, *settings.allowed_hosts), listening.getsockname()[1])
    config = uvicorn.Config(
        door, log_level="warning", timeout_graceful_shutdown=1, limit_concurrency=_CONNECTIONS, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listening])
