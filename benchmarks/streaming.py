"""Many small commits with the compaction of `karmalake stream`: the number of files, the cost of a commit.

Each interval has as many commits as a stream of short batches, then a compaction, without waiting for the clock. A day
of `stream` with an interval of 30 s has 2,880 intervals.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.lakes import AS_OF, commit_rows, make_rows
from benchmarks.report import save_results
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import Lake, create_lake
from pipelines.lake.upkeep import compact
from pipelines.settings import LakeSettings

_INTERVALS, _REPORT_EVERY, _COMMITS, _EVENTS = 160, 20, 20, 200
_COLUMNS = ("commits", "events", "files of events", "files of commits", "commit ms", "compaction s", "snapshot ms")


def run(folder: Path) -> None:
    """Commit and compact; report a row every `_REPORT_EVERY` intervals."""
    lake = create_lake(folder / "lake")
    save_results(
        "streaming",
        _COLUMNS,
        list(_intervals(lake)),
        "commit ms",
        events_a_commit=_EVENTS,
        commits_an_interval=_COMMITS,
    )


def _intervals(lake: Lake) -> Iterator[tuple[int | float, ...]]:
    commit_ms: list[float] = []
    compaction_seconds: list[float] = []
    for interval in range(1, _INTERVALS + 1):
        first = (interval - 1) * _COMMITS * _EVENTS
        moment = int(AS_OF.timestamp()) * 1_000_000 + first * 1_000
        rows = make_rows(first, _COMMITS * _EVENTS, 10_000, moment, 1_000)
        for start in range(0, len(rows), _EVENTS):
            share = rows.slice(start, _EVENTS)
            commit_ms.append(_seconds(lambda share=share, at=first + start: commit_rows(lake, share, at)) * 1000)
        compaction_seconds.append(_seconds(lambda: compact(lake, LakeSettings().compact_after_files)))
        if interval % _REPORT_EVERY == 0:
            snapshot_ms = _seconds(lambda: take_snapshot(lake)) * 1000
            files = take_snapshot(lake).files
            commits = interval * _COMMITS
            yield (
                commits, commits * _EVENTS, len(files["events"]), len(files["commits"]),
                statistics.median(commit_ms), statistics.median(compaction_seconds), snapshot_ms,
            )  # fmt: skip
            commit_ms, compaction_seconds = [], []


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun
