"""A server that speaks S3 (moto's) on a free port; run as a program, this module is that server.

Requests are processed one at a time: moto checks whether an object exists and then writes it, which S3 does in one
step. Each connection has a thread nevertheless, since clients keep idle connections open.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.services.ports import HOST, free_port
from tests.services.process import Server

BUCKET = "lakes"
_REFUSAL = b"<Error><Code>AccessDenied</Code><Message>away</Message></Error>"


class ObjectStore(Server):
    """Holds its objects in memory, in one bucket, BUCKET; `environment` is the configuration of its clients."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "eu-central-1",
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.services.object_store", str(port)]
        super().__init__("the object store", command, folder / "object_store.log", "Running on")

    def toggle_refusals(self) -> None:
        """Refuse every request from now on, with 403 and without effect; called again, serve again."""
        os.kill(self.pid, signal.SIGUSR1)


class _Refusing:
    """An application that can refuse requests: after other errors clients would retry for minutes."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._refuses = application, False

    def toggle_refusals(self) -> None:
        self._refuses = not self._refuses

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not self._refuses:
            return self._application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_REFUSAL)))])
        return [_REFUSAL]


def _body(environment: dict[str, Any]) -> bytes:
    """Read a request whole, before its turn: one whose connection stalls or is cut would delay every other.

    Raises ConnectionError if it ends early, so that no object is stored in part.
    """
    if environment.get("wsgi.input_terminated"):  # in chunks, as the SDK of AWS uploads
        return environment["wsgi.input"].read()
    length = int(environment.get("CONTENT_LENGTH") or 0)
    body = environment["wsgi.input"].read(length)
    if len(body) < length:
        raise ConnectionError(f"{len(body)} of {length} bytes arrived")
    return body


def _serve(port: int) -> None:
    from moto.core.models import DEFAULT_ACCOUNT_ID  # noqa: PLC0415 - not when a test imports the class
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app  # noqa: PLC0415
    from moto.s3.models import s3_backends  # noqa: PLC0415
    from werkzeug.serving import run_simple  # noqa: PLC0415

    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(BUCKET, "eu-central-1")
    refusing = _Refusing(create_backend_app("s3"))
    signal.signal(signal.SIGUSR1, lambda *_: refusing.toggle_refusals())
    one_at_a_time = threading.Lock()

    def one_by_one(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environment["wsgi.input"] = BytesIO(_body(environment))
        with one_at_a_time:
            return refusing(environment, start_response)

    run_simple(HOST, port, one_by_one, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
