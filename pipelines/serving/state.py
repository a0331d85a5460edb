"""What was published last: a digest per user, in one Arrow file that also holds the id of that publication.

A cache: it says nothing unless Redis holds the same id, and without it the next publication is a full one. A crash
leaves the file of before, or a temporary one beside it that the next `save` removes.
"""

import contextlib
import os
from pathlib import Path

import polars as pl
import pyarrow as pa

DIGESTS = pl.Schema({"user_id": pl.String, "digest": pl.UInt64})
_NAME = "published.arrow"
_ID = b"publication_id"


def load(state_dir: Path, publication_id: str | None) -> pl.DataFrame | None:
    """Return the digests of that publication, as `DIGESTS`; None if the file is of another one, damaged or absent."""
    try:
        with pa.memory_map(str(state_dir / _NAME)) as file:
            table = pa.ipc.open_file(file).read_all()
        held_id = (table.schema.metadata or {})[_ID].decode()
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return None
    if held_id != publication_id:
        return None
    digests = pl.DataFrame(table)
    return digests if digests.schema == DIGESTS else None


def save(state_dir: Path, publication_id: str, digests: pl.DataFrame) -> None:
    """Replace the file: a reader finds the one before or this one, whole, and so does a restart after a power loss."""
    state_dir.mkdir(parents=True, exist_ok=True)
    for abandoned in state_dir.glob(f"{_NAME}.*"):
        abandoned.unlink(missing_ok=True)
    temporary = state_dir / f"{_NAME}.{publication_id}"
    _write_durably(temporary, digests.to_arrow(compat_level=pl.CompatLevel.oldest()), publication_id)
    with contextlib.suppress(FileNotFoundError):  # another publisher took it for abandoned: no state, a full next one
        temporary.replace(state_dir / _NAME)


def _write_durably(path: Path, table: pa.Table, publication_id: str) -> None:
    schema = table.schema.with_metadata({_ID: publication_id.encode()})
    with path.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
