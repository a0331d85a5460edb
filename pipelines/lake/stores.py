"""Where a lake's files are: a folder of this machine, or S3. The one place that knows the difference.

Credentials, region and endpoint of S3 come the way AWS's own tools take them, from AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL, or from the role of the machine: every library that opens the
lake finds them there, and no setting of ours holds a secret.
"""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import duckdb
import pyarrow.fs as pa_fs

from pipelines.boundary.private_files import private_folder
from pipelines.errors import TransientError, one_line

_SCHEME = "s3://"


def is_remote(place: str) -> bool:
    """Return whether a path names an object instead of a file of this machine."""
    return place.startswith(_SCHEME)


def absolute(root: str | os.PathLike[str]) -> str:
    """Return the root of a lake as one text, whether it is a folder or a URI."""
    text = os.fspath(root)
    return text.rstrip("/") if is_remote(text) else str(Path(text).absolute())


def opened(place: str) -> tuple[pa_fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path within it."""
    return (_s3(), place.removeprefix(_SCHEME)) if is_remote(place) else (_LOCAL, place)


@contextmanager
def reached(place: str) -> Generator[None]:
    """Raise TransientError when an object store does not answer, or does not let us in; what a disk says stays."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_remote(place):
            raise
        raise TransientError(
            f"{place} cannot be reached: {one_line(error)}; check AWS_ENDPOINT_URL and the credentials"
        ) from error


def ensure_folder_of(place: str) -> None:
    """Make the folder that a file is to be written to; an object needs none."""
    if not is_remote(place):
        private_folder(Path(place).parent)


def read_text(place: str) -> str:
    """Return what a file holds; FileNotFoundError when it is not there."""
    store, path = opened(place)
    with store.open_input_stream(path) as stream:
        return stream.read().decode()


def on_this_machine(places: Iterable[str | Path]) -> list[Path]:
    """Return those that are files of this machine: an object that S3 has taken is durable already."""
    return [Path(place) for place in map(str, places) if not is_remote(place)]


def let_read(connection: duckdb.DuckDBPyConnection) -> None:
    """Let a DuckDB connection read objects by their URI, without an extension that would have to be fetched."""
    if "s3" in connection.list_filesystems():
        return
    from fsspec.implementations.arrow import ArrowFSWrapper  # noqa: PLC0415 - only where a lake is on S3

    wrapper = type("S3", (ArrowFSWrapper,), {"protocol": ("s3",)})
    connection.register_filesystem(wrapper(_s3()))


_LOCAL = pa_fs.LocalFileSystem()


def _s3() -> pa_fs.FileSystem:
    """Return S3 as the environment describes it now."""
    return _s3_at(os.environ.get("AWS_ENDPOINT_URL"))


@lru_cache(maxsize=1)
def _s3_at(endpoint: str | None) -> pa_fs.FileSystem:
    """Return S3 behind an endpoint, or AWS's own; a small file is one request."""
    return pa_fs.S3FileSystem(endpoint_override=endpoint, allow_delayed_open=True)
