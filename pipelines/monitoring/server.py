"""The HTTP server of a long-lived process: /metrics for Prometheus, /healthz and /readyz for probes.

Read-only. It is plain HTTP without authentication, so by default it listens on 127.0.0.1, and it answers only requests
whose Host header is allowed. Slow clients cannot block the process: each connection has its own thread and a deadline,
new connections replace the oldest ones, first those without a request, and the size of a request is limited.
"""

import io
import socket
import threading
from collections import OrderedDict
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipelines.boundary.hosts import is_allowed_host
from pipelines.errors import ConfigurationError
from pipelines.monitoring.health import Health
from pipelines.settings import MetricsSettings

_MAX_CONNECTIONS = 32
_MAX_REQUEST_BYTES = 16_384
_DEADLINE_SECONDS = 10.0
_TEXT = "text/plain; charset=utf-8"


@contextmanager
def serve_metrics(settings: MetricsSettings, registry: CollectorRegistry, health: Health) -> Generator[str]:
    """Serve in threads until the block exits; yields the address as host:port, with the actual port for 0.

    Raises ConfigurationError if it cannot listen.
    """
    host, port = settings.host, settings.port or 0
    try:
        server = _Server((host, port), (host, *settings.allowed_hosts), registry, health)
    except OSError as error:
        raise ConfigurationError(f"metrics cannot be served at {host}:{port}: {error}; set metrics.port") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="metrics", daemon=True)
    with server:
        thread.start()
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the default of 5, connections in a burst wait seconds for a TCP retry
    block_on_close = False  # an open connection ends at its deadline or with the process

    def __init__(
        self, place: tuple[str, int], names: Collection[str], registry: CollectorRegistry, health: Health
    ) -> None:
        self.names, self.registry, self.health = names, registry, health
        self._open: OrderedDict[Any, float] = OrderedDict()
        self._requested: set[Any] = set()
        self._lock = threading.Lock()
        super().__init__(place, _Answers)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread; with too many open, close the oldest, first of those without a request."""
        with self._lock:
            silent = (each for each in self._open if each not in self._requested)
            oldest = next(silent, next(iter(self._open))) if len(self._open) >= _MAX_CONNECTIONS else None
            self._open[request] = monotonic()
        if oldest is not None:
            _disconnect(oldest)
            self.forget(oldest)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Close connections past their deadline, even those still sending."""
        over = monotonic() - _DEADLINE_SECONDS
        with self._lock:
            late = [request for request, begun in self._open.items() if begun < over]
        for request in late:
            _disconnect(request)
            self.forget(request)

    def close_request(self, request: Any) -> None:
        """Close a finished connection."""
        self.forget(request)
        super().close_request(request)

    def record_request(self, request: Any) -> None:
        """Record that a connection has sent its request, so that connections without one do not replace it."""
        with self._lock:
            if request in self._open:
                self._requested.add(request)

    def forget(self, request: Any) -> None:
        """Stop tracking a connection."""
        with self._lock:
            self._open.pop(request, None)
            self._requested.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: disconnected clients are normal."""


def _disconnect(connection: socket.socket) -> None:
    with suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RDWR)


class _Answers(BaseHTTPRequestHandler):
    timeout = _DEADLINE_SECONDS
    server_version = "karmalake"
    sys_version = ""

    def setup(self) -> None:
        """Read the request head up to the size limit; a longer one is treated as an empty request."""
        super().setup()
        head = b""
        while b"\n\r\n" not in head and b"\n\n" not in head and len(head) < _MAX_REQUEST_BYTES:
            received = self.connection.recv(_MAX_REQUEST_BYTES - len(head))
            if not received:
                break
            head += received
        complete = b"\n\r\n" in head or b"\n\n" in head
        if complete:
            cast("_Server", self.server).record_request(self.request)
        self.rfile = io.BufferedReader(io.BytesIO(head if complete else b""))  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        """Answer a GET request by its path."""
        server = cast("_Server", self.server)
        if not is_allowed_host(self.headers.get("Host"), server.names):
            message = b"unknown host name: add it to metrics.allowed_hosts\n"
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, message, _TEXT)
            return
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, encode(server.registry), content_type)
            case "/healthz":
                self._answer_health(server.health.problems(), server.health.warnings())
            case "/readyz":
                self._answer_health(server.health.not_ready())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"not found: use /metrics, /healthz or /readyz\n", _TEXT)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer an invalid request without quoting it."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self.close_connection = True
        self._answer(status, f"{status.phrase.lower()}\n".encode(), _TEXT)

    def _answer_health(self, problems: Sequence[str], warnings: Sequence[str] = ()) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        self._answer(status, ("\n".join([*(problems or ["ok"]), *warnings]) + "\n").encode(), _TEXT)

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing: probes arrive every few seconds."""
