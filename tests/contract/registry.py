"""A schema registry with the HTTP API of Confluent's, as far as a reader asks it."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Registry:
    """What it knows by id, what it was asked for, and the status that it answers with instead, if there is one."""

    schemas: dict[int, dict[str, str]] = field(default_factory=dict[int, dict[str, str]])
    asked: list[str] = field(default_factory=list[str])
    authorizations: list[str | None] = field(default_factory=list[str | None])
    trouble: int | None = None
    port: int = 0


@contextmanager
def running_registry() -> Generator[Registry]:
    """Yield a registry that answers on a free port of this machine."""
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.asked.append(self.path)
            registry.authorizations.append(self.headers.get("Authorization"))
            found = registry.schemas.get(int(self.path.rpartition("/")[2]))
            status = registry.trouble or (200 if found else 404)
            body = json.dumps(found or {"error_code": 40403, "message": "Schema not found"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        registry.port = server.server_port
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
