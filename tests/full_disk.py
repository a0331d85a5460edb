"""Second drains on a full disk: each has one block more free space than the one before, from none to enough.

Run as `unshare --mount [--map-root-user] python -m tests.full_disk FOLDER`, with the settings in the environment: the
disk is a file system that no other process sees. It prints a line of JSON for each drain: the free blocks, the class of
the error, its message and the function that raised it, whether readers saw whole commits then, and whether the lake was
complete once there was space again.
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
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.verify import verify_lake
from pipelines.settings import Settings, load_settings
from tests.draining import contents, drain_all

_BLOCK = 4096
_DISK_BYTES = 64 * 1024 * 1024


def main() -> None:
    """Drain with more and more free space until a drain succeeds."""
    disk, settings = Path(sys.argv[1]), load_settings()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", disk], check=True)
    begun, undisturbed = (settings.model_copy(update={"data_dir": disk / name}) for name in ("begun", "undisturbed"))
    with open_ingest(begun) as ingest:
        drain(ingest, lambda _: None, 1)
    shutil.copytree(begun.data_dir, undisturbed.data_dir)
    drain_all(undisturbed)
    expected = contents(undisturbed)
    for blocks in itertools.count():
        tried = settings.model_copy(update={"data_dir": disk / str(blocks)})
        shutil.copytree(begun.data_dir, tried.data_dir)
        result = _drain_with_free(blocks, disk, tried) | {"sound": _sound(tried)}
        drain_all(tried)
        result |= {"blocks": blocks, "whole": contents(tried) == expected and _sound(tried)}
        print(json.dumps(result))  # noqa: T201 - the output is its purpose
        if result["error"] is None:
            return


def _drain_with_free(blocks: int, disk: Path, tried: Settings) -> dict[str, object]:
    """Fill the disk except for so many blocks, and drain."""
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, (os.statvfs(disk).f_bavail - blocks) * _BLOCK)
    try:
        drain_all(tried)
    except (KarmalakeError, OSError, DeltaError) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipelines/" in frame.filename]
        return {"error": type(error).__name__, "message": str(error), "step": frames[-1].name}
    finally:
        (disk / "filler").unlink()
    return {"error": None, "message": "", "step": ""}


def _sound(tried: Settings) -> bool:
    """Return whether readers see whole commits."""
    return all(check.passed for check in verify_lake(take_snapshot(open_lake(tried.lake_root))))


if __name__ == "__main__":
    main()
