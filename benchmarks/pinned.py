"""Backfills on one core each: one process, then two, up to one a core; each loads a file of its own into one lake.

Every process is pinned to its core, and starts with its compiled loops loaded. The time is from the common start to the
last end, the processor time that of all processes. They share the memory, the disk and the commits of one lake, as
processes on several hosts share a store.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import BrokenBarrierError

import duckdb

from benchmarks.backfill import HISTORY, MAPPING
from benchmarks.report import MeasurementError, require_count, save_results
from pipelines.backfill import backfill
from pipelines.settings import Settings

ROWS = 2_000_000
"""Of each file."""
_FIRST, _REPEATS, _START_SECONDS = 1_000, 3, 600.0
_COLUMNS = ("processes", "seconds", "CPU s", "events/s", "times one", "events/CPU s")


def run(folder: Path) -> None:
    """Measure each number of processes several times; the row is the fastest time, with its processor time."""
    cores = sorted(os.sched_getaffinity(0))
    numbers = [2**power for power in range(len(cores).bit_length())]
    files = [_write(folder / f"{number}.parquet", number * ROWS, ROWS) for number in range(numbers[-1])]
    first = _write(folder / "first.parquet", len(files) * ROWS, _FIRST)
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    for repeat in range(_REPEATS):
        for number in numbers:
            lake = folder / f"{repeat}-{number}"
            found[number].append(_measure(lake, first, files[:number], cores))
    best = {number: min(measured) for number, measured in found.items()}
    speeds = {number: number * ROWS / seconds for number, (seconds, _) in best.items()}
    rows = [
        (number, *best[number], round(speed), speed / speeds[1], round(number * ROWS / best[number][1]))
        for number, speed in speeds.items()
    ]
    save_results("pinned", _COLUMNS, rows, "events/s", events_each=ROWS)


def _write(path: Path, start: int, rows: int) -> Path:
    with duckdb.connect() as connection:
        connection.execute(HISTORY.format(path=path), {"first": start, "last": start + rows})
    return path


def _measure(data_dir: Path, first: Path, files: list[Path], cores: list[int]) -> tuple[float, float]:
    """Return the seconds and the processor seconds of a load of these files, by as many processes."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(len(files))
    with ProcessPoolExecutor(len(files), spawn, _share, (start,)) as processes:
        loads = [processes.submit(_load, data_dir, first, path, core) for path, core in zip(files, cores, strict=False)]
        begun, ended, worked = zip(*(load.result() for load in loads), strict=True)
    return max(ended) - min(begun), sum(worked)


def _share(start: object) -> None:
    globals()["_start"] = start


def _load(data_dir: Path, first: Path, path: Path, core: int) -> tuple[float, float, float]:
    """Return when this process began and ended, and its processor seconds."""
    os.sched_setaffinity(0, {core})
    backfill(Settings(data_dir=data_dir.with_name(f"{data_dir.name}-first-{core}")), first, MAPPING, lambda _: None)
    accepted: list[int] = []
    try:
        globals()["_start"].wait(_START_SECONDS)
    except BrokenBarrierError:
        raise MeasurementError("another process did not start") from None
    begun, worked = time.monotonic(), time.process_time()
    backfill(Settings(data_dir=data_dir), path, MAPPING, lambda record: accepted.append(record.total("accepted")))
    require_count(f"events backfilled from {path.name}", sum(accepted), ROWS)
    return begun, time.monotonic(), time.process_time() - worked
