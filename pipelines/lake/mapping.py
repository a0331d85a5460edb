"""Files of uint64 words, mapped into memory: preallocated on disk, read at random or in order."""

import mmap
import os
from pathlib import Path
from typing import cast

import numpy as np


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


def advise_random(words: np.memmap) -> None:
    """Disable read-ahead: reading a page does not load its neighbours."""
    cast("mmap.mmap", words.base).madvise(mmap.MADV_RANDOM)


def advise_sequential(words: np.memmap) -> None:
    """Enable read-ahead; pages may be freed soon after they are read."""
    cast("mmap.mmap", words.base).madvise(mmap.MADV_SEQUENTIAL)
