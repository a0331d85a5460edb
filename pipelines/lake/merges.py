"""Merges of sorted pieces, as in an LSM tree: neighbours of similar size, so that about log2(rows) pieces remain.

Small pieces are merged at once. Large ones are merged in a background thread, so that no caller waits: until the merged
piece is complete, look-ups use the two that it replaces. The caller defines what a piece is, and how two are merged. It
may seal the pieces of a moment, to drop them all later and keep the newer ones.
"""

from collections.abc import Callable, Iterable, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, TypeVar

_MERGE_RATIO = 2
Piece = TypeVar("Piece", bound=Sized)


@dataclass(frozen=True, slots=True)
class _Merge(Generic[Piece]):
    """A merge in progress, of the piece at `position` and the one after it."""

    position: int
    merged: "Future[Piece]"


class Merges(Generic[Piece]):
    """Pieces, the largest and oldest first. Not thread-safe.

    merge_now, merge_in_thread: return the merged piece of an older and a newer one. Neither changes them.
    foreground_rows: the thread does larger merges.
    """

    def __init__(
        self,
        merge_now: Callable[[Piece, Piece], Piece],
        merge_in_thread: Callable[[Piece, Piece], Piece],
        foreground_rows: int,
        pieces: Iterable[Piece] = (),
    ) -> None:
        self.pieces = list(pieces)
        self._replaced: list[Piece] = []
        self.thread = ThreadPoolExecutor(1, "merge")
        self._merge_now, self._merge_in_thread, self._foreground_rows = merge_now, merge_in_thread, foreground_rows
        self._merge: _Merge[Piece] | None = None
        self._sealed = 0
        """How many pieces, the first ones, are of the moment of `seal`."""

    def seal(self) -> None:
        """Merge none of the pieces that there are now with a later one, so that `drop_sealed` can drop them."""
        self._sealed = len(self.pieces)

    def drop_sealed(self) -> None:
        """Drop the pieces of the moment of `seal`; waits for the merge in progress if it is of two of them."""
        if self._merge is not None and self._merge.position < self._sealed:
            self.finish()
        self._replaced += self.pieces[: self._sealed]
        del self.pieces[: self._sealed]
        if self._merge is not None:
            self._merge = replace(self._merge, position=self._merge.position - self._sealed)
        self._sealed = 0

    def merge_due(self) -> None:
        """Merge neighbours of similar size: small ones now, large ones in the thread, one pair at a time."""
        self._use_merged()
        while (position := self._cheapest_pair()) is not None:
            older, newer = self.pieces[position : position + 2]
            if len(older) + len(newer) > self._foreground_rows:
                if self._merge is None:
                    self._merge = _Merge(position, self.thread.submit(self._merge_in_thread, older, newer))
                return
            self._replace(position, self._merge_now(older, newer))
            if self._merge is not None and position < self._merge.position:
                self._merge = replace(self._merge, position=self._merge.position - 1)

    def finish(self) -> None:
        """Wait for the merge in progress, and use its result."""
        if self._merge is not None:
            wait([self._merge.merged])
            self._use_merged()

    def finish_all(self) -> None:
        """Wait until no merge is due."""
        self.merge_due()
        while self._merge is not None:
            wait([self._merge.merged])
            self.merge_due()

    def replace_each(self, changed: Callable[[Piece], Piece | None]) -> None:
        """Replace each piece by `changed(piece)`, None if nothing remains. Call `finish` first."""
        results = [changed(piece) for piece in self.pieces]
        self._replaced += [piece for piece, now in zip(self.pieces, results, strict=True) if now is not piece]
        self.pieces = [piece for piece in results if piece is not None]

    def take_replaced(self) -> list[Piece]:
        """Return the pieces that merges replaced since the last call; the caller removes their files."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def close(self) -> None:
        """Wait for the thread and end it."""
        self.thread.shutdown()

    def _cheapest_pair(self) -> int | None:
        """Return the position of the pair to merge next, outside the merge in progress; None if none is due."""
        busy = range(self._merge.position - 1, self._merge.position + 2) if self._merge else range(0)
        last_sealed = self._sealed - 1
        sizes = [len(piece) for piece in self.pieces]
        pairs = [
            (older + newer, position)
            for position, (older, newer) in enumerate(pairwise(sizes))
            if older < _MERGE_RATIO * newer and position not in busy and position != last_sealed
        ]
        return min(pairs)[1] if pairs else None

    def _use_merged(self) -> None:
        if self._merge is not None and self._merge.merged.done():
            done, self._merge = self._merge, None  # if it failed, the next call tries again
            self._replace(done.position, done.merged.result())

    def _replace(self, position: int, merged: Piece) -> None:
        self._replaced += self.pieces[position : position + 2]
        self.pieces[position : position + 2] = [merged]
        if position < self._sealed:
            self._sealed -= 1
