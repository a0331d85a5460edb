"""Files of caches, written once and mapped: whether they still have the checksums that they were written with.

Small ones are compared whenever they are opened. Large ones take seconds, and are opened by commands that a schedule
repeats each minute: they are compared once a day, and before what they have is written into a new file.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.lake.stores import checksum_of

_SMALL_BYTES = 64 * 1024 * 1024
_COMPARED_SECONDS = 86_400.0


class ChangedFileError(ValueError):
    """A file has changed since it was written."""


def checksums_of(files: Sequence[Path]) -> list[int]:
    """Return the checksums of files."""
    return [checksum_of(str(file)) for file in files]


def require_unchanged(files: Sequence[Path], checksums: Sequence[int]) -> None:
    """Compare files with their checksums. Raises ChangedFileError if one differs, OSError if one cannot be read."""
    _require_all(files, checksums)
    for file, checksum in zip(files, checksums, strict=True):
        _compare(file, checksum)


def require_unchanged_if_due(files: Sequence[Path], checksums: Sequence[int]) -> None:
    """Compare small files, and those not compared for a day, like `require_unchanged`."""
    _require_all(files, checksums)
    for file, checksum in zip(files, checksums, strict=True):
        found = file.stat()
        if found.st_size <= _SMALL_BYTES or not 0 <= time.time() - found.st_mtime < _COMPARED_SECONDS:
            _compare(file, checksum)


def _require_all(files: Sequence[Path], checksums: Sequence[int]) -> None:
    if len(files) != len(checksums):
        raise ChangedFileError(f"{len(files)} of {len(checksums)} files exist")


def _compare(file: Path, checksum: int) -> None:
    """Compare a file, and note in its time of change that it was, unless it is of another user."""
    if checksum_of(str(file)) != checksum:
        raise ChangedFileError(f"{file} has changed on disk")
    with suppress(PermissionError):
        os.utime(file)
