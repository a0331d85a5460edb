"""Sorted runs of digests in memory-mapped files, merged geometrically. Knows nothing of the lake.

Small runs are merged at once. Large ones are merged by a thread while everything else goes on, so that no batch waits
for it: until the merged file is whole and durable, the runs that it is made of are looked into. A file is written once;
one that no manifest names is removed.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.contract.digest import Digests
from pipelines.lake import search
from pipelines.lake.files import make_durable

_WORDS = 3
_MERGE_RATIO = 2
_AT_ONCE_ROWS = 2_000_000
"""Merging so many takes some 0.2 s; more is done by the thread."""


@dataclass(frozen=True, slots=True)
class Run:
    """A file of digests sorted by (high, low): all high words, then all low words, then all payloads."""

    path: Path
    words: np.memmap
    digests: Digests

    def __len__(self) -> int:
        return len(self.digests)


@dataclass(frozen=True, slots=True)
class _Merge:
    """A merge in hand, of the runs at `place` and behind it, into a file that no manifest names yet."""

    place: int
    path: Path
    merged: "Future[Run]"


@dataclass(slots=True)
class Runs:
    """The runs of one folder, the largest and oldest first; there are about log2(ids) of them."""

    folder: Path
    runs: list[Run] = field(default_factory=list)
    next_file: int = 0
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "index-merge"))
    merge: _Merge | None = None
    merged: list[Run] = field(default_factory=list)
    """Runs that were merged: unmapping and removing gigabytes takes seconds, so the thread does it."""

    def find(self, ids: Digests) -> tuple[np.ndarray, np.ndarray]:
        """Return for each of the sorted ids whether a run holds it, and the payload there (its own where none does)."""
        self._merge()
        return find_in(self.runs, ids)

    def add(self, digests: Digests) -> None:
        """Add a run of sorted digests, and see to it that there are not too many."""
        run = _create(self._new_path(), len(digests))
        run.digests.high[:], run.digests.low[:], run.digests.payload[:] = digests.high, digests.low, digests.payload
        self.runs.append(run)
        self._merge()

    def flush(self) -> list[tuple[str, int]]:
        """Make all runs durable, and return the name and the rows of each."""
        written = [run for run in self.runs if run.words.flags.writeable]
        for run in written:
            run.words.flush()
        make_durable([run.path for run in written])
        self.runs = [open_run(run.path, len(run)) if run.words.flags.writeable else run for run in self.runs]
        return [(run.path.name, len(run)) for run in self.runs]

    def remove_others(self) -> None:
        """Have the files removed that are none of the runs: those that were merged, or that a crash left."""
        named = {run.path for run in self.runs} | ({self.merge.path} if self.merge else set())
        others = [path for path in self.folder.glob("*.run") if path not in named]
        if others:
            self.thread.submit(_remove, others, self.merged)
            self.merged = []

    def settle(self) -> None:
        """Wait until no two runs are left to be merged, and what was merged is gone."""
        while self.merge is not None:
            wait([self.merge.merged])
            self._merge()
        self.thread.submit(int).result()

    def finish(self) -> None:
        """Wait for the merge in hand, and take it over."""
        if self.merge is not None:
            wait([self.merge.merged])
            self._take_what_is_merged()

    def close(self) -> None:
        """Wait for everything that the thread was given."""
        self.thread.shutdown()

    def _merge(self) -> None:
        """Merge neighbours of about one size: small ones now, large ones by the thread, one pair at a time."""
        self._take_what_is_merged()
        while (place := self._cheapest_pair()) is not None:
            older, newer = self.runs[place : place + 2]
            if len(older) + len(newer) > _AT_ONCE_ROWS:
                if self.merge is None:
                    path = self._new_path()
                    self.merge = _Merge(place, path, self.thread.submit(_merged_durably, path, older, newer))
                return
            self.runs[place : place + 2] = [_merged(self._new_path(), older, newer)]
            if self.merge is not None and place < self.merge.place:
                self.merge = replace(self.merge, place=self.merge.place - 1)

    def _cheapest_pair(self) -> int | None:
        """Return the place of the two neighbours that are to be merged first; those in hand are left alone."""
        taken = range(self.merge.place - 1, self.merge.place + 2) if self.merge else range(0)
        sizes = [len(run) for run in self.runs]
        pairs = [
            (older + newer, place)
            for place, (older, newer) in enumerate(pairwise(sizes))
            if older < _MERGE_RATIO * newer and place not in taken
        ]
        return min(pairs)[1] if pairs else None

    def _take_what_is_merged(self) -> None:
        if self.merge is not None and self.merge.merged.done():
            done, self.merge = self.merge, None  # should it have failed, the next `add` tries again
            result = done.merged.result()
            self.merged += self.runs[done.place : done.place + 2]
            self.runs[done.place : done.place + 2] = [result]

    def _new_path(self) -> Path:
        self.next_file += 1
        return self.folder / f"{self.next_file:08}.run"


def find_in(runs: Sequence[Run], ids: Digests) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of the sorted ids whether one of the runs holds it, and the payload there, as `Runs.find`."""
    positions = np.full(len(ids), -1, np.int64)
    known, payload = np.zeros(len(ids), bool), ids.payload.copy()
    for run in reversed(runs):
        search.find(run.digests.high, run.digests.low, ids.high, ids.low, positions)
        found = (positions >= 0) & ~known
        payload[found] = run.digests.payload[positions[found]]
        known |= found
    return known, payload


def open_run(path: Path, rows: int) -> Run:
    """Map a file that was written before. Raises OSError or ValueError if it is not there or not whole."""
    return _map(path, "r", rows)


def _create(path: Path, rows: int) -> Run:
    """Return an empty run to be filled; the disk is found full here, by an OSError, and not when a page is written."""
    with path.open("wb") as file:
        size = _WORDS * rows * np.dtype(np.uint64).itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return _map(path, "r+", rows)


def _map(path: Path, mode: Literal["r", "r+"], rows: int) -> Run:
    words = np.memmap(path, np.uint64, mode, shape=(_WORDS, rows))
    return Run(path, words, Digests(*words))


def _merged(path: Path, older: Run, newer: Run) -> Run:
    run = _create(path, len(older) + len(newer))
    search.merge(
        older.digests.high, older.digests.low, older.digests.payload,
        newer.digests.high, newer.digests.low, newer.digests.payload,
        run.digests.high, run.digests.low, run.digests.payload,
    )  # fmt: skip
    return run


def _merged_durably(path: Path, older: Run, newer: Run) -> Run:
    run = _merged(path, older, newer)
    run.words.flush()
    make_durable([path])
    return open_run(path, len(run))


def _remove(paths: list[Path], merged: list[Run]) -> None:
    merged.clear()
    for path in paths:
        path.unlink(missing_ok=True)
