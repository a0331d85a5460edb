"""The store of a lake: a local folder or S3. The only module that knows the difference.

Credentials, region and endpoint of S3 come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and
AWS_ENDPOINT_URL, or from the machine's role, as AWS's own tools read them. Every library that opens the lake finds them
there, so no setting of karmalake holds a secret.
"""

import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow.fs as pa_fs

from pipelines.boundary.extras import extra
from pipelines.boundary.private_files import make_inner_dir
from pipelines.errors import TransientError, one_line

_SCHEME = "s3://"
_LOCAL = pa_fs.LocalFileSystem()
_CHUNK_BYTES = 4 * 1024 * 1024


def is_remote(location: str) -> bool:
    """Return whether a location is the URI of an object, not a local path."""
    return location.startswith(_SCHEME)


def absolute(root: str | os.PathLike[str]) -> str:
    """Return the root of a lake as text: an absolute path, or a URI without a trailing slash."""
    text = os.fspath(root)
    return text.rstrip("/") if is_remote(text) else str(Path(text).absolute())


def resolve_store(location: str) -> tuple[pa_fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path within that file system."""
    return (_s3(), location.removeprefix(_SCHEME)) if is_remote(location) else (_LOCAL, location)


@contextmanager
def translate_store_errors(location: str) -> Generator[None]:
    """Turn an OSError of an object store into TransientError: it does not answer, or it refuses the credentials.

    Errors of a local disk, and FileNotFoundError of either store, pass through unchanged.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_remote(location):
            raise
        raise TransientError(
            f"{location} cannot be reached: {one_line(error)}; check AWS_ENDPOINT_URL and the credentials "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or the machine's role)"
        ) from error


def ensure_parent_folder(location: str) -> None:
    """Create the parent folder of a local file, as `make_inner_dir` does; an object needs none."""
    if not is_remote(location):
        make_inner_dir(Path(location).parent)


def read_text(location: str) -> str:
    """Return the text of a file. Raises FileNotFoundError if it does not exist."""
    store, path = resolve_store(location)
    with store.open_input_stream(path) as stream:
        return stream.read().decode()


def write_text(location: str, text: str) -> None:
    """Write a small object, whole or not at all, replacing the one there. Raises TransientError for an outage."""
    store, path = resolve_store(location)
    with translate_store_errors(location), store.open_output_stream(path) as stream:
        stream.write(text.encode())


def read_chunks(location: str) -> Iterator[bytes]:
    """Yield the bytes of a file, at most 4 MiB at a time.

    Raises FileNotFoundError if it does not exist, TransientError for an outage of an object store.
    """
    store, path = resolve_store(location)
    with translate_store_errors(location), store.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def checksum_of(location: str) -> int:
    """Return the CRC-32 of the bytes of a file. Raises like `read_chunks`."""
    checksum = 0
    for chunk in read_chunks(location):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def upload(file: Path, location: str) -> tuple[str, int]:
    """Copy a local file to an object; return its SHA-256 digest (hexadecimal) and its size in bytes.

    After an error there may be an object with a part of the file. Raises FileNotFoundError if there is no such file or
    bucket, TransientError for an outage.
    """
    store, path = resolve_store(location)
    digest, size = sha256(), 0
    with file.open("rb") as reading, translate_store_errors(location), store.open_output_stream(path) as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += writing.write(chunk)
    return digest.hexdigest(), size


def modified_times(folder: str) -> dict[str, datetime]:
    """Return when each file in a folder and its subfolders was written, by its path there; empty without a folder.

    Raises TransientError when an object store does not answer.
    """
    store, path = resolve_store(folder)
    with translate_store_errors(folder):
        found = store.get_file_info(pa_fs.FileSelector(path, allow_not_found=True, recursive=True))
    return {info.path.removeprefix(f"{path}/"): info.mtime for info in found if info.is_file}


def delete_files(locations: Iterable[str]) -> None:
    """Delete files; one that no longer exists is no error. Raises TransientError for an outage of an object store."""
    for location in locations:
        store, path = resolve_store(location)
        with suppress(FileNotFoundError), translate_store_errors(location):
            store.delete_file(path)


@contextmanager
def temporary_folder(parent: str) -> Generator[str]:
    """Yield a new folder, or URI, under `parent`, and remove it with its files at the end of the block.

    A killed process leaves it behind. Raises TransientError when an object store does not answer.
    """
    folder = f"{parent}/{uuid4().hex}"
    store, path = resolve_store(folder)
    with translate_store_errors(folder):
        store.create_dir(path)
    try:
        yield folder
    finally:
        with translate_store_errors(folder):
            store.delete_dir(path)


def any_exists(locations: list[str]) -> bool:
    """Return whether one of these files, of one store, exists."""
    store, _ = resolve_store(locations[0])
    return any(info.is_file for info in store.get_file_info([resolve_store(location)[1] for location in locations]))


def require_object_store(folder: str) -> None:
    """Raise TransientError if what answers for an object store has any object, as a proxy that sends a page does."""
    unknown = f"{folder}/{uuid4().hex}"
    with translate_store_errors(folder):
        if is_remote(folder) and any_exists([unknown]):
            raise TransientError(
                f"{folder} cannot be reached: what answers there is no object store, since it has any object; check "
                "AWS_ENDPOINT_URL, and whether a proxy answers with a page of its own"
            )


def list_files(folder: str, suffix: str) -> list[str]:
    """Return the files in a folder whose names end with `suffix`, in a fixed order.

    Raises TransientError when an object store does not answer.
    """
    store, path = resolve_store(folder)
    with translate_store_errors(folder):
        found = store.get_file_info(pa_fs.FileSelector(path))
    return sorted(f"{folder}/{info.base_name}" for info in found if info.base_name.endswith(suffix))


def local_paths(locations: Iterable[str | Path]) -> list[Path]:
    """Return the locations that are local files: an object is durable once S3 has accepted it."""
    return [Path(location) for location in map(str, locations) if not is_remote(location)]


def register_s3(connection: duckdb.DuckDBPyConnection) -> None:
    """Let a DuckDB connection read `s3://` URIs without downloading DuckDB's own extension."""
    if "s3" in connection.list_filesystems():
        return
    with extra("s3", "a lake on S3"):
        from fsspec.implementations.arrow import ArrowFSWrapper  # noqa: PLC0415 - only where a lake is on S3

    wrapper = type("S3", (ArrowFSWrapper,), {"protocol": ("s3",)})
    connection.register_filesystem(wrapper(_s3()))


def _s3() -> pa_fs.FileSystem:
    """Return the S3 that the environment describes now."""
    return _s3_at(os.environ.get("AWS_ENDPOINT_URL"))


@lru_cache(maxsize=1)
def _s3_at(endpoint: str | None) -> pa_fs.FileSystem:
    """Return the S3 at an endpoint, or AWS's own; a small file is uploaded in one request."""
    return pa_fs.S3FileSystem(endpoint_override=endpoint, allow_delayed_open=True)
