"""Tombstones next to the lake: the file `tombstones.txt` in data_dir, which outlives the lake's own table.

A lake that is recreated, restored from an older copy, or moved to another address with the same data_dir finds them
there. A line is one tombstone or link (`tombstones.py`), or the format of the lines after it. The file is appended to
and never rewritten: several processes may append at once, and a line that a power cut tore does not parse as a
tombstone.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import UsageError
from pipelines.formats import TOMBSTONES
from pipelines.lake.files import make_durable
from pipelines.lake.tables import data_files, is_lake, open_lake, read_rows

FILE_NAME = "tombstones.txt"
_FORMAT_LINE = re.compile(r"format ([0-9]+)")
_TOMBSTONE = re.compile(r"[^:=\s]+:[0-9a-f]{64}(=[^:=\s]+:[0-9a-f]{64})?")


def read_tombstones(file: Path) -> frozenset[str]:
    """Return the tombstones and links in a file; none without a file. Raises NewerFormatError for a newer format."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return frozenset()
    for found in filter(None, map(_FORMAT_LINE.fullmatch, lines)):
        TOMBSTONES.require_known(int(found[1]), str(file))
    return frozenset(line for line in lines if _TOMBSTONE.fullmatch(line))


def append_tombstones(file: Path, tombstones: Collection[str]) -> None:
    """Append the tombstones that a file lacks, durably. A crash leaves whole lines and at most one torn line."""
    missing = sorted(set(tombstones) - read_tombstones(file))
    if not missing:
        return
    make_private_dir(file.parent)
    with file.open("ab", buffering=0) as appended:
        appended.write("\n".join(["", f"format {TOMBSTONES.number}", *missing, ""]).encode())
        os.fsync(appended.fileno())
    make_durable([file])


def find_tombstones(location: str) -> frozenset[str]:
    """Return the tombstones and links of a file, a data_dir or a lake. Raises UsageError if it has none."""
    path = Path(location)
    files = [path, path / FILE_NAME, path.parent / FILE_NAME]
    lakes = [root for root in (location, str(path / "lake")) if not path.is_file() and is_lake(root)]
    in_files = (read_tombstones(file) for file in files if file.is_file())
    found = frozenset[str]().union(*in_files, *map(lake_tombstones, lakes))
    if not found:
        raise UsageError(f"{location} holds no tombstones: name a {FILE_NAME}, the data_dir that has it, or a lake")
    return found


def lake_tombstones(root: str) -> frozenset[str]:
    """Return the tombstones and links in the `erasures` table of the lake in the folder or URI `root`."""
    lake = open_lake(root)
    own = str(lake.table("events").metadata().id)
    files = data_files(lake.table("erasures"))
    rows = [row for path in files for row in read_rows("erasures", path, ["user_digest"])["user_digest"].to_pylist()]
    return frozenset(qualify(row, own) for row in rows)


def qualify(row: str, lake_id: str) -> str:
    """Return a row of `erasures` as a tombstone: one without a key is under the id of its own lake."""
    return row if ":" in row else f"{lake_id}:{row}"
