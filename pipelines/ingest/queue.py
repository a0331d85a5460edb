"""A message queue as a source of batches, behind a client of its kind: RabbitMQ (`rabbitmq.py`), SQS (`sqs.py`).

A queue has no offsets, so messages are numbered as they are received, from the lake's checkpoint on. They are
acknowledged once the lake has committed them; what a crash leaves unacknowledged comes again, under new numbers, and
is dropped as a duplicate (`once`). One ingester reads a queue at a time; a second one is fenced.
"""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import decode
from pipelines.contract.schema import HEADERS, RECORD
from pipelines.contract.times import bus_times
from pipelines.errors import KarmalakeError
from pipelines.ingest.guard import Halted
from pipelines.ingest.message import Client, Message
from pipelines.ingest.ranges import Batch, Checkpoint, OffsetRange
from pipelines.settings import ContractSettings, IngestSettings, Settings

_LOG = logging.getLogger(__name__)
_MOST = 20_000
"""Messages of a batch at most: two batches are in hand, unacknowledged."""


@dataclass(slots=True)
class QueueSource:
    """The messages of one queue; `open_queue` makes it."""

    client: Client
    ingest: IngestSettings
    contract: ContractSettings
    topic_id: str = field(init=False)
    messages: list[Message] = field(default_factory=list[Message])
    """Received and not acknowledged, in order."""
    first: int = 0
    """The number of the first of them."""
    failure: KarmalakeError | None = None

    def __post_init__(self) -> None:
        digest = blake2b(f"{self.client.name} {self.client.place}".encode(), digest_size=16).hexdigest()
        self.topic_id = f"queue-{digest}"

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return what is received, numbered from the checkpoint on; None when nothing came within `max_wait_seconds`.

        Raises what the client raises, also what it raised when it acknowledged.
        """
        if self.failure:
            raise self.failure
        start = checkpoint(self.topic_id, 0) or 0
        if not self.first <= start <= self.first + len(self.messages):
            self.first = start  # of another process's commits, or the lake is another one
        again = self.messages[start - self.first :]
        batch = again or self._receive()
        if not batch:
            return None
        records = self._records(batch, start)
        decoded = decode(records, self.contract)
        decoded = replace(decoded, mis_keyed=pa.array(np.zeros(len(decoded.events), bool)))  # there are no keys
        offsets = OffsetRange(self.topic_id, self.client.name, 0, start, start + len(batch), read=len(batch))
        return Batch(self.client.name, records, decoded, (offsets,))

    def following(self) -> Checkpoint:
        """Return the checkpoint behind everything that was received."""
        position = self.first + len(self.messages)
        return lambda _topic_id, _partition: position

    def behind(self) -> int:
        """Return about how many messages wait in the queue."""
        return self.client.waiting()

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Let the queue forget what is committed; a failure is raised by the next poll."""
        upto = ranges[0].next_offset
        done, self.messages = self.messages[: upto - self.first], self.messages[upto - self.first :]
        self.first = upto
        try:
            self.client.acknowledge([message.receipt for message in done])
        except KarmalakeError as error:
            _LOG.warning("%s: %s messages will come again: %s", self.client.name, len(done), error)
            self.failure = error

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: a queue does not tell what it lost."""
        return ()

    def halt(self, halted: Halted) -> None:
        """Raise RejectedError: there is no other topic partition to go on with."""
        raise halted.error()

    def _receive(self) -> list[Message]:
        """Receive until a batch is full, or nothing more came while it lingered."""
        most, size = min(_MOST, self.ingest.max_batch_records), 0
        batch: list[Message] = []
        lingering = time.monotonic() + self.ingest.max_wait_seconds
        while len(batch) < most and size < self.ingest.max_batch_bytes:
            found = self.client.receive(most - len(batch), max(0.0, lingering - time.monotonic()))
            if not found:
                break
            lingering = min(lingering, time.monotonic() + self.ingest.linger_seconds) if not batch else lingering
            batch += found
            size += sum(len(message.value) for message in found)
        self.messages += batch
        return batch

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
def open_queue(settings: Settings) -> Generator[QueueSource]:
    """Yield the queue of the settings, connected; what is not acknowledged when it is left comes again.

    Raises ConfigurationError, UsageError or TransientError with what to do.
    """
    if settings.queue.kind == "sqs":
        from pipelines.ingest.sqs import open_sqs as connect  # noqa: PLC0415 - an extra
    else:
        from pipelines.ingest.rabbitmq import open_rabbitmq as connect  # noqa: PLC0415 - an extra
    with connect(settings) as client:
        yield QueueSource(client, settings.ingest, settings.contract)
