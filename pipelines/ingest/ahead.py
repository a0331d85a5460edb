"""The next batch, read and decoded while the one before is committed.

One thread does everything with the consumer, so that nothing else need be safe for threads. What it read ahead is used
only if it begins at the checkpoints that the lake has by then; otherwise it is dropped and read again from there.
"""

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from pipelines.contract.decode import Decoded, decode
from pipelines.ingest.ranges import OffsetRange
from pipelines.ingest.source import Checkpoint, KafkaSource, open_source
from pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it came from the bus: `records` (RECORD columns), what they are, and the offsets that it covers."""

    records: pa.Table
    decoded: Decoded
    ranges: tuple[OffsetRange, ...]

    def begins_at(self, checkpoint: Checkpoint) -> bool:
        """Return whether every range starts where the lake wants to read on, or has nothing yet."""
        return all(checkpoint(r.topic_id, r.topic_partition) in {r.start_offset, None} for r in self.ranges)

    def is_committed(self, checkpoint: Checkpoint) -> bool:
        """Return whether the lake wants to read on where every range ends."""
        return all(checkpoint(r.topic_id, r.topic_partition) == r.next_offset for r in self.ranges)


@dataclass(slots=True)
class ReadAhead:
    """A source of batches that is one batch ahead: at most two are in memory."""

    source: KafkaSource
    settings: Settings
    thread: ThreadPoolExecutor
    last: Batch | None = None
    ahead: "Future[Batch | None] | None" = None
    told: "Future[None] | None" = None

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the batch at the checkpoints, None when nothing came in time; errors as in `KafkaSource.poll`."""
        ahead, self.ahead = self.ahead, None  # should it fail, the next poll reads again
        follows = self.last is not None and self.last.is_committed(checkpoint)
        batch = (ahead if ahead and follows else self._read_from(checkpoint)).result()
        if batch and not batch.begins_at(checkpoint):
            batch = self._read_from(checkpoint).result()
        self.last = batch
        self.ahead = self._read_from(self._behind_what_was_read()) if batch else None
        return batch

    def behind(self) -> int:
        """Return how many records lie behind the last batch; errors and limits as in `KafkaSource.behind`."""
        batch = self.ahead.result() if self.ahead else None
        in_hand = sum(r.next_offset - r.start_offset for r in batch.ranges) if batch else 0
        return in_hand + self.thread.submit(self.source.behind).result()

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Commit the offsets to the consumer group as soon as the thread is free: they are advisory."""
        if self.told:
            self.told.result()
        self.told = self.thread.submit(self.source.acknowledge, ranges)

    def losses(self, checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return what the log lost, as `KafkaSource.losses`; what was read ahead is dropped, errors included."""
        self.last = self.ahead = None
        return self.thread.submit(self.source.losses, checkpoint).result()

    def _read_from(self, checkpoint: Checkpoint) -> "Future[Batch | None]":
        return self.thread.submit(self._read, checkpoint)

    def _read(self, checkpoint: Checkpoint) -> Batch | None:
        polled = self.source.poll(checkpoint)
        return polled and Batch(polled.records, decode(polled.records, self.settings.contract), polled.ranges)

    def _behind_what_was_read(self) -> Checkpoint:
        topic, positions = self.source.topic_id, dict(self.source.positions)
        return lambda topic_id, partition: positions.get(partition) if topic_id == topic else None


@contextmanager
def open_read_ahead(settings: Settings) -> Generator[ReadAhead]:
    """Yield a source connected to the brokers; closing it waits for the read in hand and commits nothing.

    Errors as in `open_source`.
    """
    with open_source(settings.kafka, settings.ingest) as source, ThreadPoolExecutor(1, "read-ahead") as thread:
        yield ReadAhead(source, settings, thread)
