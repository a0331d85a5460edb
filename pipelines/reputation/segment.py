"""A segment of histories: events ordered by user, with sorted arrays to look them up. Written once.

Owns the files of a segment: the rows in Arrow's file format, and three arrays of words. All are mapped, so a look-up
reads only the pages that it needs. `histories.py` owns the list of segments.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.lake.files import make_durable
from pipelines.lake.kept_files import checksums_of, require_unchanged, require_unchanged_if_due
from pipelines.lake.mapping import Mapped, advise_random, advise_sequential, create_map, open_map
from pipelines.reputation.chunks import CHUNK_ROWS, Chunks, map_chunks, store_chunks
from pipelines.reputation.sorted_words import bounds, distinct, positions

ROWS = pa.schema(
    [
        ("user_hash", pa.uint64()),
        ("user_id", pa.large_string()),
        ("event_id", pa.large_string()),
        ("action_type", pa.large_string()),
        ("t", pa.int64()),
        ("metadata", pa.map_(pa.large_string(), pa.large_string())),
        ("version", pa.int64()),
    ]
)
"""The columns of an event: t in microseconds since 1970, and the version of the lake whose commit added it."""
FACTS = ["user_id", "event_id", "action_type", "t", "version"]
"""Those that say what happened, and when it became known."""
NO_LINKS = np.empty((2, 0), np.uint64)
_SIGN = np.uint64(1 << 63)
_Side = Literal["left", "right"]
_EVENTS, *_ARRAYS = (".events", ".users", ".times", ".links")


class Commit(NamedTuple):
    """A commit of the lake, identified in its history by its batch."""

    version: int
    batch_id: str | None


BEFORE_ALL = Commit(-1, None)
Entry = tuple[str, int, int, Commit, Sequence[int]]
"""A segment's entry in the manifest: name, number of rows, number of links, `through`, and `checksums`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Events, in memory or in files."""

    path: Path | None
    """The path of the files, without suffix; None for a segment in memory."""
    chunks: Chunks
    """The rows (ROWS), ordered by user_hash."""
    users: np.ndarray
    """The hash of each row's user, ascending: uint64, shape (rows,)."""
    times: np.ndarray
    """The time of each row as `_sortable` words, ascending, and the hash of its user: uint64, shape (2, rows)."""
    links: np.ndarray
    """Hashes of what rows name, ascending, and the row of each: uint64, shape (2, links)."""
    through: Commit
    """The newest commit when the rows were read: no row has a higher version."""
    checksums: Sequence[int] | None = None
    """Those of its files; None if they are not durable."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def name(self) -> str:
        """The name of the files, without suffix; empty for a segment in memory."""
        return self.path.name if self.path else ""

    def entry(self) -> Entry:
        """Return this segment's entry in the manifest."""
        return self.name, len(self), self.links.shape[1], self.through, self.checksums or []

    def files(self) -> list[Path]:
        """Return the files of this segment."""
        return [file for suffix in (_EVENTS, *_ARRAYS) if self.path and (file := _file(self.path, suffix)).exists()]

    def rows_of(self, users: np.ndarray) -> np.ndarray:
        """Return the rows of users (sorted hashes, uint64): int64, shape (rows,), ascending."""
        return positions(self.users, users)

    def count_of(self, users: np.ndarray) -> np.ndarray:
        """Return how many rows each user has: int64, shape (users,)."""
        return bounds(self.users, users)[1]

    def rows_linked(self, hashes: np.ndarray) -> np.ndarray:
        """Return the rows that have one of these links (sorted hashes, uint64): int64, shape (rows,), ascending."""
        return distinct(self.links[1][positions(self.links[0], hashes)].view(np.int64))

    def rows_after(self, version: int, until_us: int) -> np.ndarray:
        """Return the rows with t < until_us that commits after a version added: int64, shape (rows,), ascending."""
        if self.through.version <= version:
            return np.empty(0, np.int64)
        return np.flatnonzero((self.chunks.column("version") > version) & (self.chunks.column("t") < until_us))

    def users_between(self, start: int, end: int) -> np.ndarray:
        """Return the users of the events with start <= t < end, in microseconds since 1970: uint64, with repeats."""
        low, high = np.searchsorted(self.times[0], _sortable(np.array([start, end])))
        return self.times[1][low:high]

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns, or all, of rows (int64, ascending)."""
        return self.chunks.take(rows, columns)


def new_segment(
    path: Path | None, rows: Iterable[pa.RecordBatch], links_of: Callable[[pa.RecordBatch], np.ndarray], through: Commit
) -> Segment:
    """Return the segment of one or more rows (ROWS, ordered by user_hash), in files or in memory.

    links_of: returns the links of some rows: the hash of each, and its row among them (uint64, shape (2, links)).
    through: the newest commit when the rows were read.
    The files are not durable. Raises OSError when the disk is full.
    """
    chunks = _store(path, rows)
    return _indexed(path, chunks, _all_links(links_of, chunks), through)


def _indexed(path: Path | None, chunks: Chunks, links: np.ndarray, through: Commit) -> Segment:
    users, times, stored = _arrays(path, len(chunks), links.shape[1])
    users[0] = chunks.column("user_hash")
    unsorted = _sortable(chunks.column("t"))
    order = np.argsort(unsorted, kind="stable")
    times[0], times[1] = unsorted[order], users[0][order]
    stored[:] = links
    return Segment(path, chunks, users[0], times, stored, through)


def _all_links(links_of: Callable[[pa.RecordBatch], np.ndarray], chunks: Chunks) -> np.ndarray:
    shifts = (np.array([[0], [start]], np.uint64) for start in chunks.starts)
    links = np.concatenate(
        [links_of(chunk) + shift for chunk, shift in zip(chunks.batches, shifts, strict=False)], axis=1
    )
    return links[:, np.argsort(links[0], kind="stable")]


def merge(path: Path | None, older: Segment, newer: Segment) -> Segment:
    """Return the segment of the rows of two, like `new_segment`; of one user, the rows of the older one come first.

    A segment in files is written in parts, so memory is bounded. Raises ChangedFileError for one that has changed.
    """
    older, newer = _in_order(older), _in_order(newer)
    chunks = _store(path, _merged_rows(older, newer))
    users, times, links = _arrays(path, len(chunks), older.links.shape[1] + newer.links.shape[1])
    _interleave(older.users[None], newer.users[None], users)
    _interleave(older.times, newer.times, times)
    _interleave(_links_after_merge(older, newer, "left"), _links_after_merge(newer, older, "right"), links)
    return Segment(path, chunks, users[0], times, links, newer.through)


def without_rows(path: Path | None, segment: Segment, removed: np.ndarray) -> Segment | None:
    """Return a segment without the removed rows (int64, ascending), like `new_segment`; None if none remains.

    Raises ChangedFileError if it has changed.
    """
    if len(removed) == len(segment):
        return None
    remains = np.ones(len(segment), bool)
    remains[removed] = False
    new_rows = np.cumsum(remains) - 1
    rows = segment.links[1].view(np.int64)
    links = np.stack([segment.links[0], new_rows[rows].view(np.uint64)])[:, remains[rows]]
    chunks = _in_order(segment).chunks
    parts = np.split(remains, chunks.starts[1:-1])
    remaining = (chunk.filter(pa.array(part)) for chunk, part in zip(chunks.batches, parts, strict=True))
    return _indexed(path, _store(path, remaining), links, segment.through)


def store_segment(path: Path, segment: Segment) -> Segment:
    """Return a segment in files, like `new_segment`, with the contents of one in memory."""
    chunks = _store(path, segment.chunks.batches)
    users, times, links = _arrays(path, len(segment), segment.links.shape[1])
    users[0], times[:], links[:] = segment.users, segment.times, segment.links
    return Segment(path, chunks, users[0], times, links, segment.through)


def open_segment(folder: Path, entry: Entry, advise: Callable[[Mapped], None] = advise_random) -> Segment:
    """Map the files of a segment. Raises OSError or ValueError if one is missing, damaged or too short.

    advise: as in `map_chunks`.
    """
    name, rows, linked, through, checksums = entry
    path = folder / name
    chunks = map_chunks(_file(path, _EVENTS), advise)
    if len(chunks) != rows:
        raise ValueError(f"{path} has {len(chunks)} rows, not {rows}")
    users, times, links = _arrays(path, rows, linked, open_map, advise)
    return Segment(path, chunks, users[0], times, links, Commit(*through), checksums)


def require_unchanged_segment(segment: Segment) -> None:
    """Compare the files of a segment that was opened with its checksums. Raises ChangedFileError if one has changed.

    Large files are compared once a day.
    """
    require_unchanged_if_due(segment.files(), segment.checksums or [])


def _in_order(segment: Segment) -> Segment:
    """Return a segment to read all of it in order."""
    if segment.path is None:
        return segment
    if segment.checksums is not None:
        require_unchanged(segment.files(), segment.checksums)
    return open_segment(segment.path.parent, segment.entry(), advise_sequential)


def make_segment_durable(segment: Segment) -> Segment:
    """Flush the files of a segment; return it with their checksums."""
    for words in (segment.users, segment.times, segment.links):
        if isinstance(words, np.memmap):
            words.flush()
    files = segment.files()
    make_durable(files)
    return replace(segment, checksums=checksums_of(files))


def remove_segment(segment: Segment) -> None:
    """Remove the files of a segment; the disk is free once nothing maps them."""
    for file in segment.files():
        file.unlink(missing_ok=True)


def _merged_rows(older: Segment, newer: Segment) -> Iterator[pa.RecordBatch]:
    """Yield the rows of both, ordered by user_hash, in parts that end between two users."""
    a = b = 0
    while a < len(older) or b < len(newer):
        next_a, next_b = _next_cut(older.users, newer.users, a, b)
        rows = pa.concat_tables([older.take(np.arange(a, next_a)), newer.take(np.arange(b, next_b))])
        users = np.concatenate([older.users[a:next_a], newer.users[b:next_b]])
        yield rows.combine_chunks().take(pa.array(np.argsort(users, kind="stable"))).combine_chunks().to_batches()[0]
        a, b = next_a, next_b


def _next_cut(older: np.ndarray, newer: np.ndarray, a: int, b: int) -> tuple[int, int]:
    """Return the ends of the next part: about CHUNK_ROWS rows of each at most, and all rows of its users."""
    lasts = [users[at + CHUNK_ROWS] for users, at in ((older, a), (newer, b)) if at + CHUNK_ROWS < len(users)]
    if not lasts:
        return len(older), len(newer)
    last = min(lasts)
    return int(np.searchsorted(older, last, "right")), int(np.searchsorted(newer, last, "right"))


def _interleave(older: np.ndarray, newer: np.ndarray, into: np.ndarray) -> None:
    """Merge two arrays of columns (shape (k, n)) whose first row ascends; of equal values, the older comes first."""
    orders: tuple[tuple[np.ndarray, np.ndarray, _Side], ...] = ((older, newer, "left"), (newer, older, "right"))
    for source, other, side in orders:
        for start in range(0, source.shape[1], CHUNK_ROWS):
            part = source[:, start : start + CHUNK_ROWS]
            at = np.arange(start, start + part.shape[1]) + np.searchsorted(other[0], part[0], side)
            into[:, at] = part


def _links_after_merge(segment: Segment, other: Segment, side: _Side) -> np.ndarray:
    """Return the links of a segment with their rows after a merge with another: uint64, shape (2, links)."""
    rows = segment.links[1].view(np.int64)
    merged_rows = rows + np.searchsorted(other.users, segment.users[rows], side)
    return np.stack([segment.links[0], merged_rows.view(np.uint64)])


def _store(path: Path | None, rows: Iterable[pa.RecordBatch]) -> Chunks:
    return store_chunks(None if path is None else _file(path, _EVENTS), ROWS, rows)


def _arrays(
    path: Path | None,
    rows: int,
    linked: int,
    map_words: Callable[[Path, tuple[int, int]], np.memmap] = create_map,
    advise: Callable[[Mapped], None] = advise_random,
) -> list[np.ndarray]:
    """Return the arrays of users, times and links of a segment, by default to fill: in files, or in memory."""
    arrays = list[np.ndarray]()
    for suffix, shape in zip(_ARRAYS, ((1, rows), (2, rows), (2, linked)), strict=True):
        if path is None or 0 in shape:
            arrays.append(np.empty(shape, np.uint64))
        else:
            arrays.append(words := map_words(_file(path, suffix), shape))
            advise(words)
    return arrays


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _sortable(times: np.ndarray) -> np.ndarray:
    """Return int64 as uint64 words in the same order."""
    return times.view(np.uint64) ^ _SIGN
