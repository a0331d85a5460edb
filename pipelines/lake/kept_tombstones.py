"""Tombstones beside the lake: the file `tombstones.txt` in data_dir, which outlives the lake's own table.

A lake that is made again, restored from an older copy, or moved to another address in the same data_dir finds them
there. A line is a tombstone (`tombstones.py`). Appended to, never rewritten: several processes may add at once, and a
line that a power cut tore is no tombstone.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from pipelines.boundary.private_files import private_folder
from pipelines.errors import UsageError
from pipelines.lake.files import make_durable, read_file
from pipelines.lake.tables import data_files, is_lake, open_lake

FILE_NAME = "tombstones.txt"
_TOMBSTONE = re.compile(r"[^:\s]+:[0-9a-f]{64}")


def read_kept(file: Path) -> frozenset[str]:
    """Return the tombstones in a file; none if it is not there."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return frozenset()
    return frozenset(line for line in lines if _TOMBSTONE.fullmatch(line))


def keep(file: Path, tombstones: Collection[str]) -> None:
    """Append the tombstones that a file lacks, durably."""
    missing = sorted(set(tombstones) - read_kept(file))
    if not missing:
        return
    private_folder(file.parent)
    with file.open("ab", buffering=0) as appended:
        appended.write("\n".join(["", *missing, ""]).encode())
        os.fsync(appended.fileno())
    make_durable([file])


def tombstones_at(place: str) -> frozenset[str]:
    """Return the tombstones of a file, a data_dir or a lake. Raises UsageError if there are none to be found there."""
    path = Path(place)
    files = [path, path / FILE_NAME, path.parent / FILE_NAME]
    lakes = [root for root in (place, str(path / "lake")) if not path.is_file() and is_lake(root)]
    found = frozenset[str]().union(*(read_kept(file) for file in files if file.is_file()), *map(stored, lakes))
    if not found:
        raise UsageError(f"{place} holds no tombstones: name a {FILE_NAME}, the data_dir that has it, or a lake")
    return found


def stored(root: str) -> frozenset[str]:
    """Return the tombstones in the table of a lake."""
    lake = open_lake(root)
    own = str(lake.table("events").metadata().id)
    files = data_files(lake.table("erasures"))
    rows = [row for path in files for row in read_file(path, ["user_digest"])["user_digest"].to_pylist()]
    return frozenset(qualified(row, own) for row in rows)


def qualified(row: str, lake_id: str) -> str:
    """Return a row of `erasures` as a tombstone: without a key, it is under the id of its own lake."""
    return row if ":" in row else f"{lake_id}:{row}"
