"""Read-ahead: the next batch is read and decoded while the previous one is committed.

A single thread makes all calls to the source, so a source need not be thread-safe. A batch that was read ahead is used
only if it begins at the checkpoints that the lake has by then; otherwise it is dropped and read again.
"""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from pipelines.best_effort import best_effort
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.guard import HaltedPartition


class Source(Protocol):
    """A source of batches: a topic (`kafka.py`), a queue (`queue.py`) or a file (`file.py`), for example."""

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the batch that begins at the checkpoints; None if nothing came in time."""
        ...

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoints after the last poll, as they will be once its batch is committed."""
        ...

    def remaining_records(self) -> int:
        """Return the number of records after the last poll."""
        ...

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Report committed ranges to the source, for its information."""
        ...

    def losses(self, checkpoint: Checkpoint, /) -> tuple[OffsetRange, ...]:
        """Return a range for each checkpoint at which the source lost records."""
        ...

    def halt(self, halted: HaltedPartition, /) -> None:
        """Stop reading a topic partition; raise RejectedError if the source has no other."""
        ...


@dataclass(slots=True)
class ReadAhead:
    """A source that reads one batch ahead: at most two batches are in memory."""

    source: Source
    thread: ThreadPoolExecutor
    stopping: threading.Event
    """Once it is set, what was read and not committed is left to the next start."""
    last: Batch | None = None
    next_batch: "Future[Batch | None] | None" = None
    _acknowledge: "Callable[[tuple[OffsetRange, ...]], None]" = field(init=False)

    def __post_init__(self) -> None:
        """Make acknowledgement best effort: only the lake's checkpoints count."""
        self._acknowledge = best_effort(self.source.acknowledge, "acknowledging a commit to the bus")

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the batch that begins at the checkpoints, None if nothing came in time, or before `stopping` was set.

        Raises what the source raises.
        """
        next_batch, self.next_batch = self.next_batch, None  # after an error, the next poll reads again
        is_last_committed = self.last is not None and self.last.is_committed(checkpoint)
        batch = (next_batch if next_batch and is_last_committed else self._read_from(checkpoint)).result()
        if batch and not batch.begins_at(checkpoint):
            batch = self._read_from(checkpoint).result()
        if self.stopping.is_set():
            return None
        self.last = batch
        self.next_batch = self._read_from(self.source.next_checkpoint()) if batch else None
        return batch

    def remaining_records(self) -> int:
        """Return the number of records after the last batch, those read ahead included.

        Raises what the source raises.
        """
        batch = self.next_batch.result() if self.next_batch else None
        read_ahead = sum(r.next_offset - r.start_offset for r in batch.ranges) if batch else 0
        return read_ahead + self.thread.submit(self.source.remaining_records).result()

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Acknowledge committed ranges once the thread is free; errors are logged."""
        self.thread.submit(self._acknowledge, ranges)

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return the ranges that the source lost; drop what was read ahead, errors included."""
        self.last = self.next_batch = None
        return self.thread.submit(self.source.losses, checkpoint).result()

    def halt(self, halted: HaltedPartition) -> None:
        """Stop reading a topic partition; drop what was read ahead, to read it again without that partition."""
        self.last = self.next_batch = None
        self.thread.submit(self.source.halt, halted).result()

    def _read_from(self, checkpoint: Checkpoint) -> "Future[Batch | None]":
        return self.thread.submit(self.source.poll, checkpoint)


@contextmanager
def open_read_ahead(source: Source, stopping: threading.Event) -> Generator[ReadAhead]:
    """Yield a read-ahead over a source; on exit, wait for the read in progress, which `stopping` ends."""
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        yield ReadAhead(source, thread, stopping)
