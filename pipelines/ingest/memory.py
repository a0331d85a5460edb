"""What ingest asks of the C library: to keep the memory that a batch frees, because the next one needs as much again.

Left alone it fetches each large array from the system and gives it back, so that every batch pays for its pages anew:
a quarter of the processor time of ingest. What is kept is bounded by `_KEPT_BYTES` beyond what is in use.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
_KEPT_BYTES = 512 * 1024 * 1024
_LARGE_BYTES = 64 * 1024 * 1024
"""What is larger comes from the system and goes back: more than a batch's arrays should be."""


def keep_freed_memory() -> bool:
    """Let this process, Arrow included, allocate from one heap that keeps what is freed; return whether it does.

    To be called before anything else is imported, or there are several heaps by then. Only the C library of GNU, hence
    Linux, can be asked; elsewhere everything stays as it was.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = ((_TRIM_THRESHOLD, _KEPT_BYTES), (_MMAP_THRESHOLD, _LARGE_BYTES), (_ARENA_MAX, 1))
    if not all(library.mallopt(parameter, value) for parameter, value in wanted):
        return False
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    return True
