"""The server of a page: any ASGI app, behind `access.py`, with bounds on connections and requests.

Plain HTTP: it listens on 127.0.0.1 by default.
"""

import secrets
import socket

import uvicorn
from starlette.types import ASGIApp

from pipelines.errors import ConfigurationError
from pipelines.pages.access import QUERY, AccessMiddleware
from pipelines.pages.connections import BoundedProtocol
from pipelines.settings import PageSettings

_CONNECTIONS = 200
"""Concurrent connections: a further one replaces one that sends no request, or is refused if all are in use."""
_MAX_HEADER_BYTES = 64 * 1024
"""Of a request, before the token is checked. uvicorn's faster parser (httptools) has no bound, and takes two Hosts."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 picks a free port. Raises ConfigurationError if it cannot listen."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(f"the page cannot listen at {host}:{port}: {error}; choose another --port") from error


def address_of(host: str, listening: socket.socket, token: str | None) -> str:
    """Return the URL to open, with the token if given."""
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{listening.getsockname()[1]}/{f'?{QUERY}={token}' if token else ''}"


def new_token() -> str:
    """Return a new random token."""
    return secrets.token_urlsafe(32)


def serve(app: ASGIApp, listening: socket.socket, host: str, token: str, settings: PageSettings) -> None:
    """Serve an app to clients with the token until SIGTERM or Ctrl-C, then close the socket."""
    guarded = AccessMiddleware(app, token, (host, *settings.allowed_hosts), listening.getsockname()[1])
    config = uvicorn.Config(
        guarded,
        http=BoundedProtocol,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        log_level="error",  # a warning is about a request, and any local process can send those
        timeout_graceful_shutdown=1,
        limit_concurrency=_CONNECTIONS,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listening])
