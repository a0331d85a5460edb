"""Files mapped into memory, read at random or in order; those of uint64 words are preallocated on disk."""

import mmap
import os
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

Mapped: TypeAlias = np.memmap | mmap.mmap


def map_file(path: Path) -> mmap.mmap:
    """Map an existing file. Raises OSError if it does not exist, ValueError if it is empty."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def create_map(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return a new file of zeros to fill. A full disk raises OSError here, not SIGBUS when a page is written."""
    with path.open("wb") as file:
        size = int(np.prod(shape)) * np.dtype(np.uint64).itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, np.uint64, "r+", shape=shape)


def open_map(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Map an existing file. Raises OSError if it does not exist, OSError or ValueError if it is too short."""
    return np.memmap(path, np.uint64, "r", shape=shape)


def advise_random(mapped: Mapped) -> None:
    """Disable read-ahead: reading a page does not load its neighbours."""
    _of_file(mapped).madvise(mmap.MADV_RANDOM)


def advise_sequential(mapped: Mapped) -> None:
    """Enable read-ahead; pages may be freed soon after they are read."""
    _of_file(mapped).madvise(mmap.MADV_SEQUENTIAL)


def _of_file(mapped: Mapped) -> mmap.mmap:
    return mapped if isinstance(mapped, mmap.mmap) else cast("mmap.mmap", mapped.base)
