"""The cost of a batch of new ids in a dedup index that memory cannot hold, with and without filters beside its runs.

Each case is a process of its own, and starts with none of the index in memory. The limit is that of a control group:
it includes the process itself and the pages of files that it maps. Needs Linux, and the right to create such a group.
"""

import multiprocessing
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

from benchmarks.cgroup import join, memory_limit
from benchmarks.dedup import SMALL, grow, time_batch
from benchmarks.report import MeasurementError, save_results
from pipelines.lake import runs
from pipelines.lake.index import open_index
from pipelines.lake.tables import Lake, create_lake

IDS, LIMIT = 300_000_000, 500_000_000
"""The filters of 300 million ids take 320 MB, the process the rest. Needs 16 GB of disk."""
_NO_LIMIT = 1 << 40
_BATCHES = 20
_COLUMNS = ("filters", "limit MB", "ids", "batch of 5,000 ms", "worst ms", "times unlimited")


def run(folder: Path) -> None:
    """Grow one index, and time batches with and without filters and limit."""
    lake = create_lake(folder / "lake")
    with closing(open_index(folder / "index", lake, lake.table("events"))) as index:
        grow(index, IDS)
        index.runs.wait_for_merges()
    save_results("dedup_limited", _COLUMNS, list(_rows(folder)), "batch of 5,000 ms", bytes=_sizes(folder))


def _rows(folder: Path) -> Iterator[tuple[object, ...]]:
    unlimited: dict[bool, float] = {}
    for number, (filters, limited) in enumerate(product((True, False), (False, True))):
        _drop_from_memory(folder)
        ids, *seconds = _in_a_process(folder, filters=filters, limit=LIMIT if limited else _NO_LIMIT, number=number)
        usual = statistics.median(seconds) * 1000
        unlimited.setdefault(filters, usual)
        limit = LIMIT // 1_000_000 if limited else "none"
        yield "yes" if filters else "no", limit, int(ids), usual, max(seconds) * 1000, usual / unlimited[filters]


def _in_a_process(folder: Path, *, filters: bool, limit: int, number: int) -> list[float]:
    with memory_limit(limit) as group:
        if group is None:
            raise MeasurementError("this machine does not permit a control group: run as root, on Linux")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, join, (group,)) as process:
            return process.submit(_measure, folder, filters, number).result()


def _measure(folder: Path, filters: bool, number: int) -> list[float]:  # noqa: FBT001 - crosses a process
    """Return the number of ids, and the seconds of each batch."""
    if not filters:
        runs._FILTER_ROWS = 1 << 62  # type: ignore[misc]  # noqa: SLF001 - how it was without them
    lake = Lake(str(folder / "lake"))
    with closing(open_index(folder / "index", lake, lake.table("events"))) as index:
        ids = sum(map(len, index.runs.runs))
        first = (number + 1) * 1_000_000
        time_batch(index, SMALL, first)  # loads the compiled loops
        return [ids, *(time_batch(index, SMALL, first + n) for n in range(1, _BATCHES + 1))]


def _drop_from_memory(folder: Path) -> None:
    for path in (folder / "index").glob("*/*.*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _sizes(folder: Path) -> dict[str, int]:
    return {kind: sum(path.stat().st_size for path in folder.glob(f"index/*/*.{kind}")) for kind in ("run", "filter")}
