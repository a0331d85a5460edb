"""The message of a queue, and the protocol of a queue client: `rabbitmq.py` and `sqs.py` implement it."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pipelines.errors import UsageError
from pipelines.settings import IngestSettings

_MAX_BATCH_MESSAGES = 20_000
"""Two batches are in memory at a time, unacknowledged."""


def batch_messages(ingest: IngestSettings) -> int:
    """Return the maximum of messages in a batch."""
    return min(_MAX_BATCH_MESSAGES, ingest.max_batch_records)


class MissingQueueError(UsageError):
    """The queue to open does not exist. A loop that had it open before waits until it exists again."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as received; `receipt` acknowledges it."""

    value: bytes
    time_ms: int
    receipt: Any


class Backlog(NamedTuple):
    """The approximate number of messages in a queue."""

    ready: int
    """Those that can be received."""
    in_flight: int
    """Those that a reader received and has not acknowledged; 0 for RabbitMQ, which does not tell."""


class QueueClient(Protocol):
    """A connection to one queue; it raises the errors of `errors.py`."""

    name: str
    """The kind and name of the queue: rabbitmq:ratings."""
    place: str
    """The address of the queue: a queue of the same name elsewhere is another topic."""
    max_wait_seconds: float
    """The longest single wait of `receive`: the end of the process waits for it."""

    def receive(self, max_messages: int, wait_seconds: float) -> list[Message]:
        """Return up to `max_messages` messages; an empty list if none comes within `wait_seconds`."""
        ...

    def acknowledge(self, receipts: list[Any]) -> None:
        """Remove messages from the queue, in the order in which they were received."""
        ...

    def release(self, receipts: list[Any]) -> None:
        """Let messages be received again at once, if the end of the connection does not."""
        ...

    def backlog(self) -> Backlog:
        """Return what the queue holds."""
        ...
