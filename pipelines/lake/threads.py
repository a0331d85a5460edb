"""Pools of threads that are kept between calls, also in a process that forks."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def kept_threads(count: int, name: str) -> Callable[[], ThreadPoolExecutor]:
    """Return a function that makes a pool at its first call; a forked child, which has no threads, makes its own."""

    @cache
    def pool() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(count, name)

    os.register_at_fork(after_in_child=pool.cache_clear)
    return pool
