"""What was published last: a digest per user, in one Arrow file that also holds the id of that publication.

A cache: it says nothing unless Redis holds the same id, and without it the next publication is a full one. It says
nothing either if the leaderboards that are wanted are not those of that publication: a digest that stayed the same
does not tell where its user belongs on a new one.
A crash leaves the file of before, or a temporary one beside it that the next `save` removes.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

DIGESTS = pl.Schema({"user_id": pl.String, "digest": pl.UInt64})
_NAME = "published.arrow"
_ID = b"publication_id"
_LEADERBOARDS = b"leaderboards"


def load(state_dir: Path, publication_id: str | None, leaderboards: Sequence[str]) -> pl.DataFrame | None:
    """Return the digests of that publication with these leaderboards, as `DIGESTS`.

    None if the file is of another publication, or of other leaderboards, damaged or absent.
    """
    try:
        with pa.memory_map(str(state_dir / _NAME)) as file:
            table = pa.ipc.open_file(file).read_all()
        held: dict[bytes, bytes] = table.schema.metadata or {}
        held_id = held[_ID].decode()
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return None
    if held_id != publication_id or held.get(_LEADERBOARDS, b"") != _text(leaderboards):
        return None
    digests = pl.DataFrame(table)
    return digests if digests.schema == DIGESTS else None


def save(state_dir: Path, publication_id: str, leaderboards: Sequence[str], digests: pl.DataFrame) -> None:
    """Replace the file: a reader finds the one before or this one, whole, and so does a restart after a power loss."""
    state_dir.mkdir(parents=True, exist_ok=True)
    for abandoned in state_dir.glob(f"{_NAME}.*"):
        abandoned.unlink(missing_ok=True)
    temporary = state_dir / f"{_NAME}.{publication_id}"
    table = digests.to_arrow(compat_level=pl.CompatLevel.oldest())
    metadata = {_ID: publication_id.encode(), _LEADERBOARDS: _text(leaderboards)}
    _write_durably(temporary, table.replace_schema_metadata(metadata))
    with contextlib.suppress(FileNotFoundError):  # another publisher took it for abandoned: no state, a full next one
        temporary.replace(state_dir / _NAME)


def _text(leaderboards: Sequence[str]) -> bytes:
    return ",".join(sorted(leaderboards)).encode()


def _write_durably(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
