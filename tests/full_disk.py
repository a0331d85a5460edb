"""Second drains on a disk that is really full: each has a block more room than the one before, from none to enough.

Run as `unshare --mount [--map-root-user] python -m tests.full_disk FOLDER`, with the settings in the environment: the
disk is a file system of its own that nobody else sees. It prints a line of JSON for each drain: how many blocks of room
there were, the class of the error, its words and the step that raised it, whether readers saw whole commits then, and
whether all was there once there was room.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

from deltalake.exceptions import DeltaError

from pipelines.drain import drain, open_ingest
from pipelines.errors import KarmalakeError
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.verify import verify_lake
from pipelines.settings import Settings, load_settings
from tests.draining import contents, drain_all

_BLOCK = 4096
_DISK_BYTES = 64 * 1024 * 1024


def main() -> None:
    """Drain with ever more room, until a drain ends well."""
    disk, settings = Path(sys.argv[1]), load_settings()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", disk], check=True)
    begun, calm = (settings.model_copy(update={"data_dir": disk / name}) for name in ("begun", "calm"))
    with open_ingest(begun) as ingest:
        drain(ingest, lambda _: None, 1)
    shutil.copytree(begun.data_dir, calm.data_dir)
    drain_all(calm)
    expected = contents(calm)
    for blocks in itertools.count():
        tried = settings.model_copy(update={"data_dir": disk / str(blocks)})
        shutil.copytree(begun.data_dir, tried.data_dir)
        told = _with_room_for(blocks, disk, tried) | {"sound": _sound(tried)}
        drain_all(tried)
        told |= {"blocks": blocks, "whole": contents(tried) == expected and _sound(tried)}
        print(json.dumps(told))  # noqa: T201 - it is what it is for
        if told["error"] is None:
            return


def _with_room_for(blocks: int, disk: Path, tried: Settings) -> dict[str, object]:
    """Fill the disk but for so many blocks, and drain."""
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, (os.statvfs(disk).f_bavail - blocks) * _BLOCK)
    try:
        drain_all(tried)
    except (KarmalakeError, OSError, DeltaError) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipelines/" in frame.filename]
        return {"error": type(error).__name__, "said": str(error), "step": frames[-1].name}
    finally:
        (disk / "filler").unlink()
    return {"error": None, "said": "", "step": ""}


def _sound(tried: Settings) -> bool:
    """Return whether readers see whole commits."""
    return all(check.passed for check in verify_lake(take_snapshot(open_lake(tried.lake_root))))


if __name__ == "__main__":
    main()
