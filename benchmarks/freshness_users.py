"""End-to-end latency, as `freshness` measures it, with ten times the users and events: a history of 50 million.

Preparing takes most of the time: two lakes are filled, derived and served, one after the other. Each is removed before
the next one. It starts only if memory and disk suffice.
"""

import shutil
from pathlib import Path

import psutil

from benchmarks.freshness import COLUMNS, JEMALLOC, Case, measure
from benchmarks.report import MeasurementError, save_results

_CASES = (Case(users=1_000_000, events=5_000_000), Case(users=10_000_000, events=50_000_000))
_MEMORY_BYTES, _DISK_BYTES = 18 * 2**30, 24 * 2**30
"""What the larger case is expected to need, extrapolated from smaller ones."""


def run(folder: Path) -> None:
    """Measure the default policy at one rate on two lakes."""
    require_resources(psutil.virtual_memory().available, shutil.disk_usage(folder).free)
    rows: list[tuple[object, ...]] = []
    for case in _CASES:
        print(f"{case.users:,} users, {case.events:,} events", flush=True)
        place = folder / str(case.users)
        rows += measure(place, case, (1_000,))
        shutil.rmtree(place)
    save_results("freshness_users", COLUMNS, rows, "p50", malloc=JEMALLOC or "glibc")


def require_resources(memory_bytes: int, disk_bytes: int) -> None:
    """Raise MeasurementError unless so much free memory and disk suffices."""
    for what, found, needed in (("memory", memory_bytes, _MEMORY_BYTES), ("disk", disk_bytes, _DISK_BYTES)):
        if found < needed:
            raise MeasurementError(f"{needed / 2**30:.0f} GiB of free {what} are needed, {found / 2**30:.1f} are free")
