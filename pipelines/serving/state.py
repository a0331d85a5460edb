"""What was published last: a digest per user, with the id of that publication; in memory, and in one Arrow file.

A cache: it says nothing unless Redis holds the same id, and without it the next publication is a full one. It says
nothing either if the leaderboards that are wanted are not those of that publication: a digest that stayed the same
does not tell where its user belongs on a new one.
Who publishes again and again keeps it in memory and saves it now and then: the file is all digests, and writing it
takes longer than publishing what a commit changed. A crash leaves the file of an earlier publication, so that the next
one is full, or a temporary one beside it that the next `save` removes.
"""

import contextlib
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipelines.boundary.private_files import private_folder

DIGESTS = pl.Schema({"user_id": pl.String, "digest": pl.UInt64})
_NAME = "published.arrow"
_ID = b"publication_id"
_LEADERBOARDS = b"leaderboards"


@dataclass(frozen=True, slots=True)
class _Last:
    """The last publication: its id, its leaderboards, and the digests of all its documents, as `DIGESTS`."""

    publication_id: str
    leaderboards: bytes
    digests: pl.DataFrame


class State:
    """What a publisher with this folder published last; of several publishers, each has its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = _read(folder / _NAME)
        self._saved = self._last

    def digests(self, publication_id: str | None, leaderboards: Sequence[str]) -> pl.DataFrame | None:
        """Return the digests of that publication with these leaderboards, as `DIGESTS`; None if another was last."""
        last = self._last
        if last is None or (last.publication_id, last.leaderboards) != (publication_id, _text(leaderboards)):
            return None
        return last.digests

    def forget(self) -> None:
        """Know of no publication, in memory alone: the next one is full."""
        self._last = None

    def remember(self, publication_id: str, leaderboards: Sequence[str], digests: pl.DataFrame) -> None:
        """Take the digests of a publication for those of the last one, in memory alone."""
        self._last = _Last(publication_id, _text(leaderboards), digests)

    def save(self) -> None:
        """Replace the file, if it is an older one: a reader finds the one before or this one, whole.

        So does a restart after a power loss. Another thread may publish meanwhile.
        """
        last = self._last
        if last is None or last is self._saved:
            return
        private_folder(self._folder)
        for abandoned in self._folder.glob(f"{_NAME}.*"):
            abandoned.unlink(missing_ok=True)
        temporary = self._folder / f"{_NAME}.{last.publication_id}"
        table = last.digests.to_arrow(compat_level=pl.CompatLevel.oldest())
        metadata = {_ID: last.publication_id.encode(), _LEADERBOARDS: last.leaderboards}
        _write_durably(temporary, table.replace_schema_metadata(metadata))
        with contextlib.suppress(FileNotFoundError):  # another publisher took it for abandoned: the next one is full
            temporary.replace(self._folder / _NAME)
        self._saved = last


def forget_state(folder: Path) -> None:
    """Remove what a folder says, which names every user; the next publication is a full one."""
    for file in folder.glob(f"{_NAME}*"):
        file.unlink(missing_ok=True)


@contextmanager
def open_state(folder: Path) -> Generator[State]:
    """Yield the state in a folder, and save it on leaving."""
    state = State(folder)
    try:
        yield state
    finally:
        state.save()


def _read(file: Path) -> _Last | None:
    """Return what a file says; None if it is damaged or absent."""
    try:
        with pa.memory_map(str(file)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        held: dict[bytes, bytes] = table.schema.metadata or {}
        last = _Last(held[_ID].decode(), held.get(_LEADERBOARDS, b""), pl.DataFrame(table))
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return None
    return last if last.digests.schema == DIGESTS else None


def _text(leaderboards: Sequence[str]) -> bytes:
    return ",".join(sorted(leaderboards)).encode()


def _write_durably(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
