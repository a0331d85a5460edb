"""Second drains on a full disk: from none to enough free blocks, and on a disk that is full from each step on.

Run as `unshare --mount [--map-root-user] python -m tests.full_disk FOLDER`, with the settings in the environment: the
disk is a file system that no other process sees. It prints a line of JSON for each drain: what was given, the class of
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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from deltalake.exceptions import DeltaError

from pipelines import drain as drain_module
from pipelines.drain import drain, open_ingest
from pipelines.errors import KarmalakeError
from pipelines.lake import commit_log, files
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.index import DedupIndex
from pipelines.lake.tables import open_lake
from pipelines.operate.verify import verify_lake
from pipelines.settings import Settings, load_settings
from tests.draining import contents, drain_all

_BLOCK = 4096
_DISK_BYTES = 64 * 1024 * 1024
STEPS: dict[str, tuple[Any, str]] = {
    "_write": (files, "_write"),
    "commit_actions": (commit_log, "commit_actions"),
    "commit_batch": (drain_module, "commit_batch"),
    "_save": (DedupIndex, "_save"),
}
"""The steps of a drain that write, by the function that reports the error."""


def main() -> None:
    """Drain with more and more free space until a drain succeeds, then with a disk that is full from each step on."""
    disk, settings = Path(sys.argv[1]), load_settings()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", disk], check=True)
    begun, undisturbed = (settings.model_copy(update={"data_dir": disk / name}) for name in ("begun", "undisturbed"))
    with open_ingest(begun) as ingest:
        drain(ingest, lambda _: None, 1)
    shutil.copytree(begun.data_dir, undisturbed.data_dir)
    drain_all(undisturbed)
    expected = contents(undisturbed)

    def attempt(name: str, full: AbstractContextManager[None]) -> bool:
        """Drain a copy within `full`, then with space; print the outcome and return whether the first succeeded."""
        tried = settings.model_copy(update={"data_dir": disk / name})
        shutil.copytree(begun.data_dir, tried.data_dir)
        result = _drain(full, tried) | {"sound": _sound(tried)}
        drain_all(tried)
        print(json.dumps(result | {"given": name, "whole": contents(tried) == expected and _sound(tried)}))  # noqa: T201 - the output is its purpose
        shutil.rmtree(tried.data_dir)
        return result["error"] is None

    for blocks in itertools.count():
        if attempt(str(blocks), _filled(disk, blocks)):
            break
    for name, (owner, step) in STEPS.items():
        attempt(name, _filled_at(disk, owner, step))


def _drain(full: AbstractContextManager[None], tried: Settings) -> dict[str, object]:
    try:
        with full:
            drain_all(tried)
    except (KarmalakeError, OSError, DeltaError) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipelines/" in frame.filename]
        return {"error": type(error).__name__, "message": str(error), "step": frames[-1].name}
    return {"error": None, "message": "", "step": ""}


@contextmanager
def _filled(disk: Path, blocks: int) -> Iterator[None]:
    """Fill the disk except for so many blocks, until the end of the block."""
    filler = disk / "filler"
    try:
        _fill(filler, disk, blocks)
        yield
    finally:
        filler.unlink()


@contextmanager
def _filled_at(disk: Path, owner: object, step: str) -> Iterator[None]:
    """Fill the disk when a step begins, until the end of the block."""
    filler, do = disk / "filler", getattr(owner, step)

    def on_a_full_disk(*arguments: Any, **named: Any) -> Any:
        _fill(filler, disk, 0)
        return do(*arguments, **named)

    try:
        with patch.object(owner, step, on_a_full_disk):
            yield
    finally:
        filler.unlink()


def _fill(filler: Path, disk: Path, blocks: int) -> None:
    if free := os.statvfs(disk).f_bavail - blocks:
        with filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), free * _BLOCK)


def _sound(tried: Settings) -> bool:
    """Return whether readers see whole commits."""
    return all(check.passed for check in verify_lake(take_snapshot(open_lake(tried.lake_root))))


if __name__ == "__main__":
    main()
