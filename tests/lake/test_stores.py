"""Resolving the store of a lake."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.errors import TransientError, UsageError
from pipelines.lake.stores import list_files, resolve_store, temporary_folder
from pipelines.lake.tables import is_lake, open_lake
from tests.services.ports import HOST


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed endpoint takes effect at once, as it does in the other libraries that open the lake."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first, path = resolve_store("s3://lakes/mine")
    assert path == "lakes/mine"
    assert resolve_store("s3://lakes/mine")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert not resolve_store("s3://lakes/mine")[0].equals(first)


def test_a_temporary_folder_is_removed(tmp_path: Path) -> None:
    """It is new each time, and is removed with its files, also after an error."""
    with temporary_folder(str(tmp_path)) as first, temporary_folder(str(tmp_path)) as second:
        assert first != second
        for name in ("b.parquet", "a.parquet", ".a.parquet.crc"):
            Path(first, name).touch()
        assert list_files(first, ".parquet") == [f"{first}/a.parquet", f"{first}/b.parquet"]
    with suppress(UsageError), temporary_folder(str(tmp_path / "deeper")):
        raise UsageError("nothing is written")
    assert [path.name for path in tmp_path.rglob("*")] == ["deeper"]


class _EmptyStore(BaseHTTPRequestHandler):
    """Answers like S3 that nothing exists, from this process."""

    def do_GET(self) -> None:
        body = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called
        """Print nothing."""


@contextmanager
def _served_by(handler: type[BaseHTTPRequestHandler], monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Let a handler answer for the object store during the block."""
    with ThreadingHTTPServer((HOST, 0), handler) as server, ThreadPoolExecutor(1) as pool:
        credentials = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_ALLOW_HTTP": "true"}
        for name, value in {**credentials, "AWS_ENDPOINT_URL": f"http://{HOST}:{server.server_port}"}.items():
            monkeypatch.setenv(name, value)
        pool.submit(server.serve_forever)
        try:
            yield
        finally:
            server.shutdown()


def test_threads_go_on_while_the_store_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is a thread of this process: a call that stopped it would never be answered (`not-blocked`)."""
    with _served_by(_EmptyStore, monkeypatch):
        assert not is_lake("s3://lakes/none")


class _SignInPage(_EmptyStore):
    """Answers every request with a page, as a proxy does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "13")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"<html></html>")

    def do_HEAD(self) -> None:
        self.do_GET()


def test_a_page_instead_of_an_object_store_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has any object, and is not taken for a damaged lake, for which a copy is to be restored."""
    with (
        _served_by(_SignInPage, monkeypatch),
        pytest.raises(TransientError, match="what answers there is no object store"),
    ):
        open_lake("s3://lakes/mine").table("events")
