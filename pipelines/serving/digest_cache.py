"""Digests of the last published documents, with the id of that publication; in memory, and in one Arrow file.

A cache: it is valid only if the store holds the same id; without it the next publication is full. It is also invalid
if the configured leaderboards differ from those of that publication, since an unchanged digest does not place its user
on a new leaderboard.
A long-lived publisher keeps it in memory and saves it when it ends: the file contains every digest, and writing it
takes longer than publishing the changes of a commit. A crash leaves the file of an earlier publication, so that the
next one is full, or a temporary file that the next `save` removes.
"""

import contextlib
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipelines.boundary.private_files import make_inner_dir
from pipelines.formats import DIGESTS as DIGESTS_FORMAT
from pipelines.serving.digests import Digests

_NAME = "published.arrow"
_ID = b"publication_id"
_LEADERBOARDS = b"leaderboards"
_FORMAT = b"format"
_SCHEMA = pa.schema([("user_id", pa.large_string()), ("digest", pa.uint64())])
"""`digests.DIGESTS` as polars writes it; built without polars, whose threads would begin with the import."""


@dataclass(frozen=True, slots=True)
class _Last:
    """The last publication: its id, its leaderboards, and the digests of all its documents."""

    publication_id: str
    leaderboards: bytes
    digests: Digests


class DigestCache:
    """What the publisher with this folder published last; each publisher has its own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = _read(folder / _NAME)
        self._saved = self._last

    def digests(self, publication_id: str | None, leaderboards: Sequence[str]) -> Digests | None:
        """Return the digests of that publication with these leaderboards; None if another was last."""
        last = self._last
        if last is None or (last.publication_id, last.leaderboards) != (publication_id, _text(leaderboards)):
            return None
        return last.digests

    def forget(self) -> None:
        """Discard the last publication, in memory only: the next one is full."""
        self._last = None

    def remember(self, publication_id: str, leaderboards: Sequence[str], digests: Digests) -> None:
        """Replace the digests by those of a newer publication, in memory only."""
        self._last = _Last(publication_id, _text(leaderboards), digests)

    def save(self) -> None:
        """Replace the file atomically, if it is outdated: a reader finds the old or the new one, whole.

        So does a restart after a power loss.
        """
        last = self._last
        if last is None or last is self._saved:
            return
        make_inner_dir(self._folder)
        for abandoned in self._folder.glob(f"{_NAME}.*"):
            abandoned.unlink(missing_ok=True)
        temporary = self._folder / f"{_NAME}.{last.publication_id}"
        table = last.digests.all().to_arrow(compat_level=pl.CompatLevel.oldest())
        metadata = {_ID: last.publication_id.encode(), _LEADERBOARDS: last.leaderboards}
        metadata[_FORMAT] = b"%d" % DIGESTS_FORMAT.number
        _write_durably(temporary, table.replace_schema_metadata(metadata))
        with contextlib.suppress(FileNotFoundError):  # another publisher removed it as abandoned: the next one is full
            temporary.replace(self._folder / _NAME)
        self._saved = last


def delete_digest_cache(folder: Path) -> None:
    """Delete the cache files in a folder, which name every user; the next publication is full."""
    for file in folder.glob(f"{_NAME}*"):
        file.unlink(missing_ok=True)


@contextmanager
def open_digest_cache(folder: Path) -> Generator[DigestCache]:
    """Yield the digest cache of a folder, and save it on exit."""
    state = DigestCache(folder)
    try:
        yield state
    finally:
        state.save()


def _read(file: Path) -> _Last | None:
    """Read a file; None if it is damaged, missing or of another format."""
    try:
        with pa.memory_map(str(file)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        if table.schema != _SCHEMA:
            return None
        table.validate(full=True)  # of damaged texts, polars would read beyond the end, and end the process
        metadata: dict[bytes, bytes] = table.schema.metadata or {}
        publication_id = metadata[_ID].decode()
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    if metadata.get(_FORMAT) != b"%d" % DIGESTS_FORMAT.number:
        return None
    digests = pl.DataFrame(table.replace_schema_metadata(None))
    return _Last(publication_id, metadata.get(_LEADERBOARDS, b""), Digests(digests))


def _text(leaderboards: Sequence[str]) -> bytes:
    return ",".join(sorted(leaderboards)).encode()


def _write_durably(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
