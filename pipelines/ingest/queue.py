"""A message queue as a source of batches, through a client for RabbitMQ (`rabbitmq.py`) or SQS (`sqs.py`).

A queue has no offsets, so messages are numbered as they are received, from the lake's checkpoint on. They are
acknowledged once the lake has committed them. After a crash, unacknowledged messages are redelivered under new numbers
and dropped as duplicates (`once`). One ingester reads a queue at a time; a second one is fenced: a number says nothing
of which process committed it, so only the end of what this one acknowledged counts as its own.
"""

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import decode
from pipelines.contract.schema import HEADERS, RECORD
from pipelines.contract.times import bus_times
from pipelines.errors import FencedError, KarmalakeError
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.filling import NEVER, Clock, Filling
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.message import Message, QueueClient, batch_messages
from pipelines.ingest.sources import CONTRACT, require_no_mapped_topics
from pipelines.settings import ContractSettings, IngestSettings, Settings

_LOG = logging.getLogger(__name__)
QUEUE_ID = "queue-"
"""What the topic_id of a queue begins with."""


@dataclass(slots=True)
class QueueSource:
    """The messages of one queue; `open_queue` makes it."""

    client: QueueClient
    ingest: IngestSettings
    contract: ContractSettings
    stopping: threading.Event = NEVER
    """Ends a poll that waits for messages, once it is set."""
    topic_id: str = field(init=False)
    messages: list[Message] = field(default_factory=list[Message])
    """Received and not acknowledged, in order."""
    first: int | None = None
    """The number of the first message in `messages`, at the end of those acknowledged; None before the first poll."""
    failure: KarmalakeError | None = None
    clock: Clock = time.monotonic
    """Measures how long a batch lingers."""

    def __post_init__(self) -> None:
        digest = blake2b(f"{self.client.name} {self.client.place}".encode(), digest_size=16).hexdigest()
        self.topic_id = f"{QUEUE_ID}{digest}"

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return received messages, numbered from the checkpoint on; None if none came within `max_wait_seconds`.

        Raises what the client raises, what an earlier `acknowledge` met, and FencedError for a checkpoint that is
        neither the end of the acknowledged messages nor that of all received ones.
        """
        if self.failure:
            raise self.failure
        start = checkpoint(self.topic_id, 0) or 0
        if self.first is None:
            self.first = start
        if start not in {self.first, self.first + len(self.messages)}:
            raise self._fenced(start)
        uncommitted = self.messages[start - self.first :]
        batch = uncommitted or self._receive()
        if not batch:
            return None
        records = self._records(batch, start)
        decoded = decode(records, self.contract)
        end = start + len(batch)
        offsets = OffsetRange(self.topic_id, self.client.name, 0, start, end, read=len(batch), source=CONTRACT)
        return Batch(self.client.name, records, decoded, (offsets,))

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoint after all received messages."""
        position = (self.first or 0) + len(self.messages)
        return lambda _topic_id, _partition: position

    def remaining_records(self) -> int:
        """Return the approximate number of messages that can be received; warn if there are only others."""
        backlog = self.client.backlog()
        if not backlog.ready and (elsewhere := backlog.in_flight - len(self.messages)) > 0:
            _LOG.warning(
                "%s: about %s messages were received by a reader that has not acknowledged them: they can be received "
                "again once their visibility timeout is over",
                self.client.name,
                elsewhere,
            )
        return backlog.ready

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Acknowledge the messages of a committed range; the next poll raises the error if that fails."""
        start, next_offset = ranges[0].start_offset, ranges[0].next_offset
        if start != self.first:
            self.failure = self._fenced(start)
            return
        count = next_offset - start
        committed, self.messages, self.first = self.messages[:count], self.messages[count:], next_offset
        try:
            self.client.acknowledge([message.receipt for message in committed])
        except KarmalakeError as error:
            _LOG.warning("%s: %s messages will be redelivered: %s", self.client.name, len(committed), error)
            self.failure = error

    def release(self) -> None:
        """Return unacknowledged messages to the queue; an error is logged, and delays them only."""
        try:
            self.client.release([message.receipt for message in self.messages])
        except KarmalakeError as error:
            _LOG.warning("%s: %s messages return to the queue later: %s", self.client.name, len(self.messages), error)

    def _fenced(self, start: int) -> FencedError:
        return FencedError(
            f"another ingester has moved the checkpoint of {self.client.name} to {start}, where this one has committed "
            f"up to {self.first}: its messages go back to the queue; stop one of the two"
        )

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: a queue does not report losses."""
        return ()

    def halt(self, halted: HaltedPartition) -> None:
        """Raise RejectedError: there is no other topic partition."""
        raise halted.error()

    def _receive(self) -> list[Message]:
        """Receive the first messages, then until the batch is complete (`filling.py`) or nothing comes in that time."""
        max_messages = batch_messages(self.ingest)
        batch: list[Message] = []
        found = self._await(max_messages, self.ingest.max_wait_seconds)
        filling = Filling(max_messages, self.ingest.max_batch_bytes, self.ingest.linger_seconds, self.clock)
        while found:
            batch += found
            self.messages += found  # before the next request, which may fail
            filling.add(len(found), sum(len(message.value) for message in found))
            seconds = 0.0 if self.stopping.is_set() else filling.seconds_left()
            found = self._await(filling.records_left, seconds if filling.lingers else 0.0) if seconds else []
        return batch

    def _await(self, max_messages: int, seconds: float) -> list[Message]:
        """Receive until a message comes, the time is over or the process is to end."""
        deadline = self.clock() + seconds
        while True:
            left = max(0.0, deadline - self.clock())
            found = self.client.receive(max_messages, min(left, self.client.max_wait_seconds))
            if found or self.clock() >= deadline or self.stopping.is_set():
                return found

    def _records(self, batch: list[Message], start: int) -> pa.Table:
        count = len(batch)
        columns = [
            pa.repeat(pa.scalar(self.topic_id), count),
            pa.repeat(pa.scalar(self.client.name), count),
            pa.repeat(pa.scalar(0, pa.int32()), count),
            pa.array(np.arange(start, start + count)),
            bus_times([message.time_ms for message in batch]),
            pa.nulls(count, pa.binary()),
            pa.array([message.value for message in batch], pa.binary()),
            pa.nulls(count, HEADERS),
        ]
        return pa.table(columns, schema=RECORD)


@contextmanager
def open_queue(settings: Settings, stopping: threading.Event = NEVER) -> Generator[QueueSource]:
    """Yield a source connected to the queue of the settings; on exit, unacknowledged messages go back to the queue.

    After an error or a crash, those of SQS go back once their visibility timeout is over.

    stopping: ends a poll that waits for messages, once it is set.

    Raises ConfigurationError, UsageError or TransientError.
    """
    require_no_mapped_topics(settings)
    if settings.queue.kind == "sqs":
        from pipelines.ingest.sqs import open_sqs as connect  # noqa: PLC0415 - an extra
    else:
        from pipelines.ingest.rabbitmq import open_rabbitmq as connect  # noqa: PLC0415 - an extra
    with connect(settings) as client:
        source = QueueSource(client, settings.ingest, settings.contract, stopping)
        yield source
        source.release()
