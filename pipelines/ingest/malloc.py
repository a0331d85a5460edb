"""Tuning of malloc for ingest: the process keeps the memory that a batch frees, since the next one needs as much.

By default glibc maps each large array and unmaps it again, so every batch pays for new pages: a quarter of the CPU time
of ingest. The memory kept is bounded by `_TRIM_BYTES` beyond what is in use.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
_TRIM_BYTES = 512 * 1024 * 1024
_MMAP_BYTES = 64 * 1024 * 1024
"""Larger allocations are mapped and unmapped: the arrays of a batch are smaller."""


def tune_malloc() -> bool:
    """Make this process, Arrow included, allocate from one heap that keeps freed memory; return whether it does.

    Call it before any other import: later there are several heaps. It takes effect with glibc only, hence on Linux;
    elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    options = ((_TRIM_THRESHOLD, _TRIM_BYTES), (_MMAP_THRESHOLD, _MMAP_BYTES), (_ARENA_MAX, 1))
    if not all(library.mallopt(parameter, value) for parameter, value in options):
        return False
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    return True
