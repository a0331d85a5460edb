"""A fake schema registry with the part of Confluent's HTTP API that readers use."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Registry:
    """The schemas by id or GUID, the requests so far, and an optional response to all requests."""

    schemas: dict[int | str, dict[str, Any]] = field(default_factory=dict[int | str, dict[str, Any]])
    requests: list[str] = field(default_factory=list[str])
    authorizations: list[str | None] = field(default_factory=list[str | None])
    connections: int = 0
    forced_response: tuple[int, dict[str, str], bytes] | None = None
    """Status, headers and body."""
    resolved: dict[int | str, dict[str, Any]] = field(default_factory=dict[int | str, dict[str, Any]])
    """The response to requests for resolved references."""
    unresolved_response: tuple[int, dict[str, str], bytes] | None = None
    """Status, headers and body if references cannot be resolved."""
    subjects: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict[tuple[str, int], dict[str, Any]])
    """The schemas by subject and version, which references name."""
    supports_guids: bool = True
    port: int = 0

    @property
    def url(self) -> str:
        """The URL, with a path prefix."""
        return f"http://127.0.0.1:{self.port}/api"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        if self.forced_response:
            return self.forced_response
        path, _, query = path.partition("?")
        if query and self.unresolved_response:
            return self.unresolved_response
        _, _, space, name = path.rsplit("/", 3)
        if space == "versions":
            known_version = self.subjects.get((path.split("/")[-3], int(name)))
            return (200 if known_version else 404), {}, json.dumps(known_version or {"error_code": 40401}).encode()
        if name == "types":
            return 200, {}, b'["AVRO", "JSON", "PROTOBUF"]'
        if space == "guids" and not self.supports_guids:
            return 404, {}, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'
        known = self.schemas | self.resolved if query == "format=resolved" else self.schemas
        found = known.get(name if space == "guids" else int(name))
        missing = {"error_code": 40403, "message": "Schema not found"}
        return (200 if found else 404), {}, json.dumps(found or missing).encode()


@contextmanager
def running_registry() -> Generator[Registry]:
    """Yield a registry that runs on a free port of this machine."""
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            registry.connections += 1

        def do_GET(self) -> None:
            registry.requests.append(self.path)
            registry.authorizations.append(self.headers.get("Authorization"))
            status, headers, body = registry.answer(self.path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # the client has closed the connection

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        registry.port = server.server_port
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
