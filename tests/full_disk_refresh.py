"""Refreshes on a full disk, each published with a new base: each has more free space than the one before.

Run as `unshare --mount [--map-root-user] python -m tests.full_disk_refresh FOLDER`: the disk is a file system that no
other process sees. It prints a line of JSON for each refresh: the free bytes, the class of the error, its message, and
whether it is temporary; whether readers saw the old rows or the new ones then; and whether a refresh after it, with
space, had the new rows and left no other files than its own.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb

from pipelines.errors import is_transient
from pipelines.reputation import draft_file
from pipelines.reputation.base import base_folder, published_base
from pipelines.reputation.derive import Draft, open_draft
from tests.reputation.history import DAY, NOW, Event, at
from tests.reputation.policies import policy
from tests.reputation.test_incremental import lake, rows

_STEP_BYTES = 512 * 1024
_DISK_BYTES = 512 * 1024 * 1024
_COMMITS = [
    [Event(f"e{n}", f"user-{n}", "Done", NOW - 40 * DAY) for n in range(5_000)],
    [Event(f"n{n}", f"user-{n}", "Done", NOW - 1) for n in range(500)],
]


def main() -> None:
    """Refresh with more and more free space until a refresh succeeds."""
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", disk], check=True)
    begun, draft_file._FOLD_THRESHOLD = disk / "begun", 0.0
    _refresh(disk, begun, 1)
    old = rows(begun / "warehouse.duckdb")
    for step in itertools.count():
        tried = disk / "tried"
        shutil.copytree(begun, tried)
        result = {"free": step * _STEP_BYTES} | _refresh_with_free(step * _STEP_BYTES, disk, tried)
        seen = rows(tried / "warehouse.duckdb")
        _refresh(disk, tried, 2)
        new = rows(tried / "warehouse.duckdb")
        result |= {"sound": seen in (old, new), "whole": new != old and _left_over(tried) == []}
        shutil.rmtree(tried)
        print(json.dumps(result), flush=True)  # noqa: T201 - the output is its purpose
        if result["error"] is None:
            return


def _refresh(disk: Path, folder: Path, commits: int) -> None:
    """Refresh and publish with a new base; the lake is beside the folder."""
    with open_draft(folder / "warehouse.duckdb") as draft:
        _publish(draft, disk, commits)


def _publish(draft: Draft, disk: Path, commits: int) -> None:
    draft.refresh(lake(disk / "lake", _COMMITS[:commits]), policy(), at(NOW))
    draft.publish()


def _refresh_with_free(size: int, disk: Path, folder: Path) -> dict[str, object]:
    """Fill the disk except for so many bytes, and refresh."""
    lake(disk / "lake", _COMMITS)  # written before
    with (disk / "filler").open("wb") as filler:
        found = os.statvfs(disk)
        os.posix_fallocate(filler.fileno(), 0, found.f_bavail * found.f_frsize - size)
    try:
        _refresh(disk, folder, 2)
    except (OSError, duckdb.Error) as error:
        return {"error": type(error).__name__, "message": str(error), "temporary": is_transient(error)}
    finally:
        (disk / "filler").unlink()
    return {"error": None, "message": "", "temporary": True}


def _left_over(folder: Path) -> list[str]:
    """Return the files that belong neither to the published warehouse nor to the histories."""
    path = folder / "warehouse.duckdb"
    base = str(published_base(path)).removesuffix(".duckdb")
    names = {file.name for file in folder.iterdir()} - {"base", "histories", path.name, f"{path.name}.lock"}
    return [*names, *(file.name for file in base_folder(path).iterdir() if not file.name.startswith(base))]


if __name__ == "__main__":
    main()
