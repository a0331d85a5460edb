"""A schema registry in the memory of this process: the part of Confluent's HTTP API that writers and readers use."""

import json
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, ClassVar, Self

_HOST = "127.0.0.1"


class Registry:
    """A running registry. Schemas have ids from 1 on; one that is registered again keeps its id."""

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"schemas": []})
        self._server = ThreadingHTTPServer((_HOST, 0), handler)
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port on this machine."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """The address for writers and readers."""
        return f"http://{_HOST}:{self.port}"


def register(port: int, subject: str, schema: dict[str, Any]) -> int:
    """Register a schema under a subject, as a writer does, and return its id."""
    connection = HTTPConnection(_HOST, port)
    try:
        connection.request("POST", f"/subjects/{subject}/versions", json.dumps({"schema": json.dumps(schema)}))
        return int(json.loads(connection.getresponse().read())["id"])
    finally:
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    schemas: ClassVar[list[str]]

    def do_POST(self) -> None:
        """Register a schema: POST /subjects/SUBJECT/versions."""
        schema = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
        if schema not in self.schemas:
            self.schemas.append(schema)
        self._respond(HTTPStatus.OK, {"id": self.schemas.index(schema) + 1})

    def do_GET(self) -> None:
        """Return a schema: GET /schemas/ids/ID."""
        number = self.path.rpartition("/")[2]
        if number.isdecimal() and 0 < int(number) <= len(self.schemas):
            return self._respond(HTTPStatus.OK, {"schema": self.schemas[int(number) - 1]})
        return self._respond(HTTPStatus.NOT_FOUND, {"error_code": 40403, "message": "Schema not found"})

    def log_message(self, *_: object) -> None:
        """Do not log requests."""

    def _respond(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
