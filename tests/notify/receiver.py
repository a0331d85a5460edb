"""A webhook receiver for tests: a real HTTP server that accepts, rejects, fails or hangs as configured."""

import hmac
import http.server
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.services.ports import HOST

SECRET = "a-webhook-secret"  # noqa: S105 # of a server that lives as long as a test


@dataclass(frozen=True, slots=True)
class Request:
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.headers["Idempotency-Key"]

    @property
    def payload(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def is_signed(self) -> bool:
        """Verify the signature as docs/notifications.md describes."""
        signed = self.headers["Karmalake-Timestamp"].encode() + b"." + self.body
        expected = "v1=" + hmac.new(SECRET.encode(), signed, "sha256").hexdigest()
        return hmac.compare_digest(expected, self.headers["Karmalake-Signature"])


Status = int | tuple[int, dict[str, str]]


class Receiver:
    """Answers each request with the result of `answer`, a status or a status with headers, and records all requests."""

    def __init__(self, answer: Callable[[Request], Status] = lambda _: 204) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.hanging = threading.Event()
        self._released = threading.Event()
        self._server = http.server.ThreadingHTTPServer((HOST, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_port}/hook"

    @property
    def keys(self) -> list[str]:
        return [request.key for request in list(self.requests)]

    def hang(self, _: Request) -> int:
        """DeliveryResult nothing until the test ends."""
        self.hanging.set()
        self._released.wait()
        return 503

    def _handler(receiver) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805 # `self` is the handler's
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = Request(dict(self.headers), self.rfile.read(length))
                if len(request.body) < length:
                    return  # of a notifier that was killed while it sent
                receiver.requests.append(request)
                answer = receiver.answer(request)
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    if status != 204:
                        self.send_header("Content-Length", "0")
                    self.end_headers()
                except ConnectionError:
                    self.close_connection = True  # a notifier that was killed

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # named so by its base
                """Log nothing."""

        return Handler
