"""How the process allocates memory: it tunes glibc's malloc for ingest, and says where jemalloc is missing.

By default glibc maps each large array and unmaps it again, so every batch pays for new pages: a quarter of the CPU time
of ingest. The memory kept is bounded by `_TRIM_BYTES` beyond what is in use.

A statement of DuckDB takes and frees thousands of small pieces. With glibc's malloc that takes longer the more there
have been, and no call changes it: only the environment can name another allocator (docs/benchmarks.md).
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
    if (library := _glibc()) is None:
        return False
    options = ((_TRIM_THRESHOLD, _TRIM_BYTES), (_MMAP_THRESHOLD, _MMAP_BYTES), (_ARENA_MAX, 1))
    if not all(library.mallopt(parameter, value) for parameter, value in options):
        return False
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    return True


def explain_malloc() -> str | None:
    """Return how to make refreshes faster by another allocator; None with jemalloc, and where there is no glibc."""
    if (library := _glibc()) is None or hasattr(library, "mallctl"):
        return None
    return (
        "refreshes take less processor time with jemalloc than with glibc's malloc: install Debian's package "
        "libjemalloc2, or the one of your system, and set LD_PRELOAD=libjemalloc.so.2"
    )


def _glibc() -> ctypes.CDLL | None:
    """Return the symbols of the process; None where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
