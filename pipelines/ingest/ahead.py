"""The next batch, read and decoded while the one before is committed.

One thread does everything with the source, so that nothing in it need be safe for threads. What it read ahead is used
only if it begins at the checkpoints that the lake has by then; otherwise it is dropped and read again from there.
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from pipelines.best_effort import best_effort
from pipelines.ingest.guard import Halted
from pipelines.ingest.ranges import Batch, Checkpoint, OffsetRange


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

    def halt(self, halted: Halted, /) -> None:
        """Read a topic partition no further; raise RejectedError where there is no other one."""
        ...


@dataclass(slots=True)
class ReadAhead:
    """A source of batches that is one batch ahead: at most two are in memory."""

    source: Source
    thread: ThreadPoolExecutor
    last: Batch | None = None
    ahead: "Future[Batch | None] | None" = None
    _tell: "Callable[[tuple[OffsetRange, ...]], None]" = field(init=False)

    def __post_init__(self) -> None:
        """Make telling the other side best effort: the lake's checkpoints are the ones that count."""
        self._tell = best_effort(self.source.acknowledge, "telling the bus what is committed")

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
        self.thread.submit(self._tell, ranges)

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return what the source has lost; what was read ahead is dropped, errors included."""
        self.last = self.ahead = None
        return self.thread.submit(self.source.losses, checkpoint).result()

    def halt(self, halted: Halted) -> None:
        """Read a topic partition no further; what was read ahead of it is dropped, and read again without it."""
        self.last = self.ahead = None
        self.thread.submit(self.source.halt, halted).result()

    def _read_from(self, checkpoint: Checkpoint) -> "Future[Batch | None]":
        return self.thread.submit(self.source.poll, checkpoint)


@contextmanager
def reading_ahead(source: Source) -> Generator[ReadAhead]:
    """Yield the source read ahead; leaving it waits for the read in hand."""
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        yield ReadAhead(source, thread)
