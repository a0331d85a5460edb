"""The HTTP server of a long-lived process: /metrics for Prometheus, /healthz and /readyz for whoever restarts it.

Owns the paths and nothing else: it only reads. It is plain HTTP without a password, so it listens on 127.0.0.1 unless
the settings say otherwise. Nobody's slowness holds up the process: each request has a thread of its own, and a
time-out.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipelines.errors import ConfigurationError
from pipelines.monitoring.health import Health

_TEXT = "text/plain; charset=utf-8"


@contextmanager
def serving(host: str, port: int, registry: CollectorRegistry, health: Health) -> Generator[str]:
    """Serve in threads until the block is left; yields the address, host:port, with the port that 0 came to.

    Raises ConfigurationError where it cannot listen.
    """
    try:
        server = _Server(host, port, registry, health)
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

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        self.registry, self.health = registry, health
        super().__init__((host, port), _Answers)


class _Answers(BaseHTTPRequestHandler):
    timeout = 10.0
    server_version = "karmalake"

    def do_GET(self) -> None:
        """Answer by the path."""
        server = cast("_Server", self.server)
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, encode(server.registry), content_type)
            case "/healthz":
                self._judge(server.health.stalled(), server.health.stale())
            case "/readyz":
                self._judge(server.health.unready())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n", _TEXT)

    def _judge(self, problems: Sequence[str], news: Sequence[str] = ()) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        self._answer(status, ("\n".join([*(problems or ["ok"]), *news]) + "\n").encode(), _TEXT)

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: a probe every few seconds is no news."""
