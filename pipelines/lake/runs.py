"""Sorted runs of digests in memory-mapped files, merged geometrically (`merges.py`). Independent of the lake.

A file is written once. Large runs are merged in a thread, into a file that is durable before it is used.

A run of `_FILTER_ROWS` or more has a filter beside it (`run_filter.py`), written when the run is made durable, so that
memory need not hold the run. A run that has changed since then is not used: of large ones, the filter has the checksums
of the rows; of others, the caller keeps one of the file.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from pipelines.contract.digest import Digests
from pipelines.lake import search
from pipelines.lake.files import make_durable
from pipelines.lake.mapping import advise_random, advise_sequential, create_map, open_map
from pipelines.lake.merges import Merges
from pipelines.lake.run_filter import (
    DamagedRunError,
    Filter,
    filter_path,
    find_filtered,
    read_filter,
    require_unchanged,
    write_filter,
)

_WORDS = 3
_FOREGROUND_MERGE_ROWS = 2_000_000
"""A merge of this many rows takes about 0.2 s; the thread does larger ones."""
_FILTER_ROWS = 100_000
"""All smaller runs together have at most about twice as many rows: 5 MB."""


@dataclass(frozen=True, slots=True)
class Run:
    """A file of digests sorted by (high, low).

    `words` maps the file: uint64, shape (3, rows), the high words, the low words and the payloads. `digests` are views
    of its rows.
    """

    path: Path
    words: np.memmap
    digests: Digests
    filtered: Filter | None = None
    """None if the run is small or not durable yet."""
    checksum: int | None = None
    """Of the file; None if the run is large or not durable yet."""

    def __len__(self) -> int:
        return len(self.digests)


class Runs:
    """The runs of one folder, the largest and oldest first: about log2(ids) of them."""

    def __init__(self, folder: Path, runs: Sequence[Run] = ()) -> None:
        self._folder = folder
        self._numbers = count(1 + max((int(run.path.stem) for run in runs), default=0))
        self._merges = Merges(self._merge, self._merge_durably, _FOREGROUND_MERGE_ROWS, runs)

    @property
    def runs(self) -> list[Run]:
        """The runs as they are searched now."""
        return self._merges.pieces

    def find(self, ids: Digests) -> tuple[np.ndarray, np.ndarray]:
        """Look up n sorted ids, as `find_in` does."""
        self._merges.merge_due()
        return find_in(self.runs, ids)

    def add(self, digests: Digests) -> None:
        """Add a run of sorted digests, and merge runs that are due. Raises OSError when the disk is full."""
        run = _create(self._new_path(), len(digests))
        run.digests.high[:], run.digests.low[:], run.digests.payload[:] = digests.high, digests.low, digests.payload
        self.runs.append(run)
        self._merges.merge_due()

    def remove(self, ids: Digests) -> None:
        """Remove sorted ids: each run that has one is replaced by a copy without them.

        Waits for the merge in progress. Raises OSError when the disk is full, DamagedRunError like `find_in`.
        """
        self.finish_merge()
        self._merges.replace_each(lambda run: self._without(run, ids))

    def flush(self) -> list[tuple[str, int, int | None]]:
        """Make all runs durable, with their filters; return (file name, rows, checksum) of each, for `open_run`."""
        flushed = {run.path: run for run in _flush([run for run in self.runs if not _is_flushed(run)])}
        self.runs[:] = [flushed.get(run.path, run) for run in self.runs]
        return [(run.path.name, len(run), run.checksum) for run in self.runs]

    def remove_replaced_files(self) -> None:
        """Remove, in the thread, the files of runs that were replaced: unmapping gigabytes takes seconds."""
        if replaced := self._merges.take_replaced():
            self._merges.thread.submit(_remove, replaced)

    def remove_stray_files(self) -> None:
        """Remove the files that a crash left. Not while a merge is in progress."""
        named = {run.path for run in self.runs}
        for file in [*self._folder.glob("*.run"), *self._folder.glob("*.filter")]:
            if file.with_suffix(".run") not in named:
                file.unlink()

    def wait_for_merges(self) -> None:
        """Wait until no merge is due and the replaced files are removed."""
        self._merges.finish_all()
        self._merges.thread.submit(int).result()

    def finish_merge(self) -> None:
        """Wait for the merge in progress, and use its result."""
        self._merges.finish()

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._merges.close()

    def _without(self, run: Run, ids: Digests) -> Run | None:
        """Return a run without ids: the same one if it has none of them, None if it has no others."""
        removed = _positions(run, ids)
        if not len(removed):
            return run
        if len(removed) == len(run):
            return None
        _require_unchanged(run)
        copy = _create(self._new_path(), len(run) - len(removed))
        _copy_except(run.words, removed, copy.words)
        return copy

    def _merge(self, older: Run, newer: Run) -> Run:
        for each in (older, newer):
            _require_unchanged(each)
        run = _create(self._new_path(), len(older) + len(newer))
        search.merge(
            older.digests.high, older.digests.low, older.digests.payload,
            newer.digests.high, newer.digests.low, newer.digests.payload,
            run.digests.high, run.digests.low, run.digests.payload,
        )  # fmt: skip
        return run

    def _merge_durably(self, older: Run, newer: Run) -> Run:
        [run] = _flush([self._merge(_open_sequentially(older), _open_sequentially(newer))])
        return run

    def _new_path(self) -> Path:
        return self._folder / f"{next(self._numbers):08}.run"


def find_in(runs: Sequence[Run], ids: Digests) -> tuple[np.ndarray, np.ndarray]:
    """Look up n sorted ids in runs.

    Returns whether a run has the id (bool, shape (n,)), and its payload there (uint64, shape (n,)), or the id's own
    payload if no run has it. Raises DamagedRunError if rows that were read have changed since they were written.
    """
    positions = np.full(len(ids), -1, np.int64)
    known, payload = np.zeros(len(ids), bool), ids.payload.copy()
    for run in reversed(runs):
        _find(run, ids, positions)
        found = (positions >= 0) & ~known
        payload[found] = run.digests.payload[positions[found]]
        known |= found
    return known, payload


def _positions(run: Run, ids: Digests) -> np.ndarray:
    """Return the positions of ids in a run, ascending; an id that another engine's rewrite repeated has several."""
    low = np.searchsorted(run.digests.high, ids.high, "left")
    high = np.searchsorted(run.digests.high, ids.high, "right")
    same = [
        at for n in np.flatnonzero(low < high) for at in range(low[n], high[n]) if run.digests.low[at] == ids.low[n]
    ]
    return np.unique(np.array(same, np.int64))


def _copy_except(words: np.ndarray, removed: np.ndarray, into: np.ndarray) -> None:
    """Copy all columns of `words` but those at the positions `removed`, ascending, without temporary arrays."""
    start = at = 0
    for end in [*removed.tolist(), words.shape[1]]:
        into[:, at : at + end - start] = words[:, start:end]
        at, start = at + end - start, end + 1


def open_run(path: Path, rows: int, checksum: int | None) -> Run:
    """Map an existing file, and its filter.

    Raises OSError if it does not exist, OSError or ValueError if it or its filter is too short or damaged. Of a large
    run, the rows are compared when they are read.
    """
    words = open_map(path, (_WORDS, rows))
    if rows < _FILTER_ROWS:
        if zlib.crc32(words.data) != checksum:
            raise ValueError(f"{path} is damaged")
        return Run(path, words, Digests(*words), checksum=checksum)
    filtered = read_filter(filter_path(path), words)
    if filtered is None:
        raise ValueError(f"{path} has no filter, or a damaged one")
    advise_random(words)
    return Run(path, words, Digests(*words), filtered)


def _require_unchanged(run: Run) -> None:
    """Compare all of a run that is durable. Raises DamagedRunError if it has changed since."""
    if run.filtered is not None:
        require_unchanged(run.filtered, run.words)
    elif run.checksum not in {None, zlib.crc32(run.words.data)}:
        raise DamagedRunError


def _find(run: Run, ids: Digests, positions: np.ndarray) -> None:
    if run.filtered is None:
        search.find(run.digests.high, run.digests.low, ids.high, ids.low, positions)
    else:
        find_filtered(run.filtered, run.words, ids.high, ids.low, positions)


def _create(path: Path, rows: int) -> Run:
    """Return an empty run to fill, without a filter that an earlier run of this name left. Raises OSError."""
    filter_path(path).unlink(missing_ok=True)
    words = create_map(path, (_WORDS, rows))
    return Run(path, words, Digests(*words))


def _is_flushed(run: Run) -> bool:
    return run.filtered is not None or run.checksum is not None


def _flush(runs: list[Run]) -> list[Run]:
    """Make runs durable, and write the filters of large ones; return them as they are opened from then on."""
    for run in runs:
        run.words.flush()
    large = [run for run in runs if len(run) >= _FILTER_ROWS]
    checksums = [None if len(run) >= _FILTER_ROWS else zlib.crc32(run.words.data) for run in runs]
    for run in large:
        write_filter(filter_path(run.path), _open_sequentially(run).words)
    make_durable([*(run.path for run in runs), *(filter_path(run.path) for run in large)])
    return [open_run(run.path, len(run), checksum) for run, checksum in zip(runs, checksums, strict=True)]


def _open_sequentially(run: Run) -> Run:
    """Map a run again, to read all of it in order."""
    words = open_map(run.path, (_WORDS, len(run)))
    advise_sequential(words)
    return replace(run, words=words, digests=Digests(*words))


def _remove(runs: list[Run]) -> None:
    paths = [run.path for run in runs]
    runs.clear()  # unmaps them
    for path in paths:
        path.unlink(missing_ok=True)
        filter_path(path).unlink(missing_ok=True)
