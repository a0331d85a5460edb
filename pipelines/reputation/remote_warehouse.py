"""The published warehouse beside a lake on S3: where it is, and the download that readers on other machines open.

Under `{lake}/warehouse`, each file has a name of its own and never changes: the changes of a publication, and in
`base/` the base that they belong to. `published.json` names the two, with their sizes and digests. It is written last,
so a reader sees a whole publication or the one before. `warehouse_upload.py` writes all of this.

A download is in the cache folder of the user, in a folder for each lake. A file that is there is not downloaded again;
those of an earlier publication are removed. The names come from a bucket, so they are checked before they are paths.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from pipelines.boundary.file_lock import exclusive_lock
from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import CorruptionError, TransientError, UsageError
from pipelines.formats import WAREHOUSE, release
from pipelines.lake.stores import is_remote, read_chunks, resolve_store, translate_store_errors
from pipelines.lake.tables import Lake, is_table
from pipelines.reputation.base import base_folder, remove_other_bases
from pipelines.reputation.database_file import remove_database

_ATTEMPTS = 3
"""A publication may remove the files that an older pointer names while they are downloaded."""
_LOCK_SECONDS = 3600.0
_NAME = r"^[0-9]{8,20}-[0-9a-f]{8}\.duckdb$"
_PURPOSE = "pass the address that the publisher of the warehouse has as lake.uri (KARMALAKE_LAKE_URI)"


class StoredFile(BaseModel):
    """A file of a publication."""

    name: str = Field(pattern=_NAME)
    size: int
    """Bytes."""
    sha256: str


class RemotePublication(BaseModel):
    """The content of `published.json`: what was published, and its files."""

    format: int
    """Of the warehouse."""
    karmalake_version: str
    lake_version: int
    as_of: datetime
    erasures: int
    """How many erasures and withdrawals the lake had applied."""
    changes: StoredFile
    base: StoredFile

    def paths(self) -> dict[str, StoredFile]:
        """Return the files by their paths within the folder; the base is first."""
        return {f"base/{self.base.name}": self.base, self.changes.name: self.changes}


class _Header(BaseModel):
    """What every release can read of a publication."""

    format: int
    karmalake_version: str


def remote_folder(lake_root: str) -> str:
    """Return the URI of the folder that holds the published warehouse of a lake."""
    return f"{lake_root}/warehouse"


def pointer(lake_root: str) -> str:
    """Return the URI of the object that names the files of the newest publication."""
    return f"{remote_folder(lake_root)}/published.json"


def read_publication(lake_root: str) -> RemotePublication:
    """Return the newest publication of the warehouse of a lake on S3.

    Raises FileNotFoundError if there is none, NewerFormatError and UsageError for one that another release wrote,
    CorruptionError for one that is damaged, TransientError when the store does not answer or refuses the credentials.
    """
    where = pointer(lake_root)
    text = b"".join(read_chunks(where))
    try:
        header = _Header.model_validate_json(text)
        _require_own_format(header, where)
        return RemotePublication.model_validate_json(text)
    except ValidationError as error:
        raise CorruptionError(
            f"{where} is damaged ({error.errors()[0]['msg']}): the next publication of the warehouse replaces it"
        ) from None


def _require_own_format(header: _Header, where: str) -> None:
    replace(WAREHOUSE, remedy="").require_known(header.format, where, header.karmalake_version)
    if header.format < WAREHOUSE.number:
        raise UsageError(
            f"{where} was written by karmalake {header.karmalake_version} in an older format than that of this "
            f"release, {release()}: install that release here, or upgrade the publisher"
        )


@contextmanager
def downloaded(lake_root: str) -> Generator[Path]:
    """Yield the path of the published warehouse of a lake on S3, in the cache of this user, up to date.

    Within the block no other process replaces it; what was opened there remains readable afterwards. A killed download
    leaves a file `.part`, which the next one replaces. Raises UsageError if the address is not that of a lake with a
    published warehouse, TransientError if the warehouse was replaced during each attempt, OSError if the disk is full,
    and otherwise like `read_publication`.
    """
    _check_address(lake_root)
    folder = _cache_folder(lake_root)
    make_private_dir(folder / "base")
    with _exclusively(folder):
        yield _download(lake_root, folder)


def _check_address(lake_root: str) -> None:
    bucket, _, path = lake_root.removeprefix("s3://").partition("/")
    if not is_remote(lake_root) or not bucket or not path:
        raise UsageError(f"{lake_root} is not s3://bucket/folder: {_PURPOSE}")


def _cache_folder(lake_root: str) -> Path:
    """Return the folder for the warehouse of one lake; an endpoint has buckets of its own."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    lake = sha256(f"{os.environ.get('AWS_ENDPOINT_URL', '')} {lake_root}".encode()).hexdigest()
    return Path(caches) / "karmalake" / lake[:16]


@contextmanager
def _exclusively(folder: Path) -> Generator[None]:
    try:
        with exclusive_lock(folder / "lock", _LOCK_SECONDS):
            yield
    except TimeoutError as error:
        raise TransientError(f"{error}, to download the warehouse: try again") from None


def _download(lake_root: str, folder: Path) -> Path:
    for _ in range(_ATTEMPTS):
        try:
            publication = read_publication(lake_root)
        except FileNotFoundError:
            raise UsageError(_describe_missing(lake_root)) from None
        with suppress(FileNotFoundError):
            for path, file in publication.paths().items():
                _fetch(f"{remote_folder(lake_root)}/{path}", file, folder / path)
            return _remove_others(folder / publication.changes.name, publication.base.name)
    raise TransientError(f"the files of {pointer(lake_root)} were replaced while they were downloaded: try again")


def _fetch(location: str, file: StoredFile, to: Path) -> None:
    """Download a file, unless it is there. Raises FileNotFoundError if it is not in the store."""
    if not to.exists() or to.stat().st_size != file.size:
        _download_file(location, file, to)


def _download_file(location: str, file: StoredFile, to: Path) -> None:
    partial, digest = to.with_suffix(".part"), sha256()
    with partial.open("wb") as out:
        for chunk in read_chunks(location):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise CorruptionError(f"{location} differs from what was uploaded: the next publication replaces it")
    partial.replace(to)


def _remove_others(warehouse: Path, base: str) -> Path:
    """Remove the files of earlier publications from the cache; return the warehouse."""
    for file in warehouse.parent.glob("*.duckdb"):
        if file != warehouse:
            remove_database(file)
    remove_other_bases(base_folder(warehouse), base)
    return warehouse


def _describe_missing(lake_root: str) -> str:
    """Return that nothing is published at an address: no such bucket, no lake, or a lake without a warehouse yet."""
    bucket = lake_root.removeprefix("s3://").partition("/")[0]
    store, _ = resolve_store(lake_root)
    with translate_store_errors(lake_root):
        if not store.get_file_info(bucket).type:
            return f"there is no bucket {bucket} for {lake_root}: {_PURPOSE}, and check AWS_ENDPOINT_URL"
    if is_table(Lake(lake_root).folder("events")):
        return (
            f"there is a lake at {lake_root}, but no warehouse was published there yet: the process that refreshes it "
            "uploads one; until then, copy its warehouse.duckdb and base/ to a folder and open that folder"
        )
    return f"there is no lake and no published warehouse at {lake_root}: {_PURPOSE}; both are only read"
