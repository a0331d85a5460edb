"""Commits, files and refreshes of a day by the rate of events: real batches and commits, in simulated time.

Events arrive at random (a Poisson process). A batch is filled by the code that fills those of a topic or queue, on a
clock that the arrivals move; it is decoded, deduplicated and committed as by `karmalake stream`. A refresh begins when
something is committed and the one before has ended; how long it takes is an assumption. Compaction is left out.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.lakes import AS_OF, make_rows
from benchmarks.report import save_results
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.drain import Ingest, drain_once, open_ingest_from
from pipelines.ingest.batch import Batch, Checkpoint
from pipelines.ingest.message import Message
from pipelines.ingest.queue import QueueSource
from pipelines.lake.commit import CommitRecord
from pipelines.settings import IngestSettings, Settings

_RATES = (1, 50, 10_000)
_LINGERS = (0.25, IngestSettings().linger_seconds)
_COMMITS, _USERS = 150, 1_000_000
_ROUND_TRIP_SECONDS = 0.002
_COMMIT_SECONDS = 0.05
_REFRESH_SECONDS = (0.1, 0.6)
_DAY_SECONDS = 86_400
_COLUMNS = (
    "events per second", "linger", "commits", "records a commit", "files", "files a commit",
    *(f"refreshes of {seconds} s" for seconds in _REFRESH_SECONDS), "share of a core",
)  # fmt: skip


def run(folder: Path) -> None:
    """Commit some batches at each rate, with each linger; report what a day of them is."""
    rows = [measure(folder / f"{rate}-{linger}", rate, linger, _COMMITS) for linger in _LINGERS for rate in _RATES]
    save_results("commits", _COLUMNS, rows, "commits", commits=_COMMITS, note="per day; the core is that of ingest")


def measure(folder: Path, rate: int, linger: float, commits: int) -> tuple[int | float, ...]:
    """Return a row of the results, measured on `commits` batches."""
    ingest = IngestSettings(linger_seconds=linger)
    settings = Settings(data_dir=folder, ingest=ingest)
    queue = _Arrivals(rate, _values(int(rate * (linger + 1) * (commits + 2)) + commits))
    source = _Source(queue, ingest, settings.contract, clock=lambda: queue.seconds)
    with open_ingest_from(source, settings) as opened:
        before, begun, records = _files(settings), time.process_time(), 0
        for _ in range(commits):
            records += _commit(opened).total("read")
        core_seconds, files = time.process_time() - begun, _files(settings) - before
    ends = source.ends[:commits]
    days = ends[-1] / _DAY_SECONDS
    refreshes = (round(count_refreshes(ends, seconds) / days) for seconds in _REFRESH_SECONDS)
    return (
        rate, linger, round(commits / days), records / commits, round(files / days), files / commits,
        *refreshes, core_seconds / ends[-1],
    )  # fmt: skip


def _commit(ingest: Ingest) -> CommitRecord:
    while (record := drain_once(ingest)) is None:
        continue
    return record


def count_refreshes(batches: Sequence[float], refresh_seconds: float) -> int:
    """Return how many refreshes follow batches that are complete at these seconds, each of which takes a while."""
    refreshes, begun = 0, float("-inf")
    for complete in batches:
        committed = complete + _COMMIT_SECONDS
        if committed > begun:
            refreshes, begun = refreshes + 1, max(committed, begun + refresh_seconds)
    return refreshes


@dataclass
class _Arrivals:
    """A queue at which events arrive at random, with the clock that shows the time of the last request."""

    rate: int
    values: Iterator[bytes]
    name: str = "queue:simulated"
    place: str = "here"
    max_wait_seconds: float = 0.1
    seconds: float = 0.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def receive(self, max_messages: int, wait_seconds: float) -> list[Message]:
        """Wait for the next event; return it with those that come during the round trip."""
        gap = self.random.exponential(1 / self.rate)
        if gap > wait_seconds:
            self.seconds += wait_seconds
            return []
        self.seconds += gap + _ROUND_TRIP_SECONDS
        count = min(max_messages, 1 + self.random.poisson(self.rate * _ROUND_TRIP_SECONDS))
        return [Message(next(self.values), int(AS_OF.timestamp() * 1000), None) for _ in range(count)]

    def acknowledge(self, receipts: list[object]) -> None:
        """Do nothing."""

    def release(self, receipts: list[object]) -> None:
        """Do nothing."""

    def waiting(self) -> int:
        """Return nothing."""
        return 0


@dataclass(slots=True)
class _Source(QueueSource):
    """A source that remembers when each batch was complete."""

    ends: list[float] = field(default_factory=list[float])

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the next batch."""
        batch = QueueSource.poll(self, checkpoint)
        if batch:
            self.ends.append(self.clock())
        return batch


def _values(count: int) -> Iterator[bytes]:
    rows = make_rows(0, count, _USERS, int(AS_OF.timestamp()) * 1_000_000, 1)
    return iter(encode(rows.select(EVENT.names)).to_pylist())


def _files(settings: Settings) -> int:
    return sum(path.is_file() for path in Path(settings.lake_root).rglob("*"))
