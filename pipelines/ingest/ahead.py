"""The next batch, read and decoded while the one before is committed.

One thread does everything with the source, so that nothing in it need be safe for threads. What it read ahead is used
only if it begins at the checkpoints that the lake has by then; otherwise it is dropped and read again from there.
"""

import logging
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pipelines.ingest.ranges import Batch, Checkpoint, OffsetRange

_LOG = logging.getLogger(__name__)


class Source(Protocol):
    """Where batches come from: a topic (`source.py`) or a file (`file.py`)."""

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the batch at the checkpoints, None when nothing came in time."""
        ...

    def following(self) -> Checkpoint:
        """Return the checkpoints behind what was polled last, as they will be once it is committed."""
        ...

    def behind(self) -> int:
        """Return how many records lie behind what was polled last."""
        ...

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Tell the other side, for information, what is committed."""
        ...

    def losses(self, checkpoint: Checkpoint, /) -> tuple[OffsetRange, ...]:
        """Return a range for each checkpoint that the source can no longer go on from."""
        ...


@dataclass(slots=True)
class ReadAhead:
    """A source of batches that is one batch ahead: at most two are in memory."""

    source: Source
    thread: ThreadPoolExecutor
    last: Batch | None = None
    ahead: "Future[Batch | None] | None" = None
    tells: bool = True
    """Whether the other side took what it was told last."""

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the batch at the checkpoints, None when nothing came in time; errors as the source has them."""
        ahead, self.ahead = self.ahead, None  # should it fail, the next poll reads again
        follows = self.last is not None and self.last.is_committed(checkpoint)
        batch = (ahead if ahead and follows else self._read_from(checkpoint)).result()
        if batch and not batch.begins_at(checkpoint):
            batch = self._read_from(checkpoint).result()
        self.last = batch
        self.ahead = self._read_from(self.source.following()) if batch else None
        return batch

    def behind(self) -> int:
        """Return how many records lie behind the last batch; errors and limits as the source has them."""
        batch = self.ahead.result() if self.ahead else None
        in_hand = sum(r.next_offset - r.start_offset for r in batch.ranges) if batch else 0
        return in_hand + self.thread.submit(self.source.behind).result()

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Tell the other side as soon as the thread is free; what it raises is logged: the batch is committed."""
        self.thread.submit(self._acknowledge, ranges)

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return what the source has lost; what was read ahead is dropped, errors included."""
        self.last = self.ahead = None
        return self.thread.submit(self.source.losses, checkpoint).result()

    def _acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        try:
            self.source.acknowledge(ranges)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lake's checkpoints count
            if self.tells:
                _LOG.warning("%s cannot be told what is committed: %r", ranges[0].topic, error, exc_info=error)
            self.tells = False
        else:
            self.tells = True

    def _read_from(self, checkpoint: Checkpoint) -> "Future[Batch | None]":
        return self.thread.submit(self.source.poll, checkpoint)


@contextmanager
def reading_ahead(source: Source) -> Generator[ReadAhead]:
    """Yield the source read ahead; leaving it waits for the read in hand."""
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        yield ReadAhead(source, thread)
