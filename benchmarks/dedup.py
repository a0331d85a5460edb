"""The cost of a batch in the dedup index as it grows, and the slowest batch while runs are merged.

Ids are random 128-bit digests, like SipHash's. A batch is classified and added durably, as in ingest.
"""

import statistics
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.report import save_results
from pipelines.contract.digest import Digests
from pipelines.contract.schema import EVENT
from pipelines.lake.index import DedupIndex, open_index
from pipelines.lake.tables import create_lake

SIZES = (1_000_000, 10_000_000, 100_000_000, 300_000_000)
_GROWTH = 5_000_000
SMALL, _LARGE = 5_000, 500_000
_BATCHES = 40
_RNG = np.random.default_rng(1)
_COLUMNS = (
    "ids",
    "runs",
    "gigabytes",
    "batch of 5,000 ms",
    "worst ms",
    "against 1 million",
    "ids/s of 500,000",
    "worst s",
)


def run(folder: Path) -> None:
    """Grow one index through all sizes."""
    lake = create_lake(folder / "lake")
    batches = count()
    rows: list[tuple[object, ...]] = []
    with closing(open_index(folder / "index", lake, lake.table("events"))) as index:
        time_batch(index, SMALL, next(batches))  # loads the compiled loops
        for size in SIZES:
            grow(index, size)
            for _ in range(2):  # it grew faster than from any bus: wait for merges, and adopt the merged runs
                index.runs.wait_for_merges()
                time_batch(index, SMALL, next(batches))
            small = [time_batch(index, SMALL, next(batches)) for _ in range(_BATCHES)]
            ids = sum(map(len, index.runs.runs))
            large = [time_batch(index, _LARGE, next(batches)) for _ in range(_BATCHES // 4)]
            gigabytes = sum(run.words.nbytes for run in index.runs.runs) / 1e9
            usual = statistics.median(small) * 1000
            first = rows[0][3] if rows else usual
            assert isinstance(first, float)  # noqa: S101 - tells the type checker
            speed = round(_LARGE / statistics.median(large))
            rows.append(
                (ids, len(index.runs.runs), gigabytes, usual, max(small) * 1000, usual / first, speed, max(large))
            )
    save_results("dedup", _COLUMNS, rows, "batch of 5,000 ms")


def grow(index: DedupIndex, size: int) -> None:
    """Add random ids until the index has `size`."""
    while (missing := size - sum(map(len, index.runs.runs))) > 0:
        index.extend(_random_digests(min(_GROWTH, missing)), 0)


def time_batch(index: DedupIndex, size: int, number: int) -> float:
    """Return the duration of a batch of new ids in seconds."""
    events = _events(size, number)
    started = time.perf_counter()
    classification = index.classify(events)
    index.extend(classification.new, 0)
    return time.perf_counter() - started


def _events(size: int, number: int) -> pa.Table:
    ids = [f"{number}-{n}" for n in range(size)]
    rows = {
        "event_id": ids,
        "user_id": pa.repeat("a-user", size),
        "action_type": pa.repeat("DriverRated", size),
        "event_time": pa.array(np.arange(size)).cast(EVENT.field("event_time").type),
        "metadata": pa.array([[("rating", "5")]] * size, EVENT.field("metadata").type),
    }
    return pa.table(rows, schema=EVENT)


def _random_digests(size: int) -> Digests:
    high, low, payload = _RNG.integers(0, 2**64, (3, size), np.uint64, endpoint=False)
    return Digests(np.sort(high), low, payload)
