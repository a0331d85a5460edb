"""What a queue delivers, and what every client of a queue does: `rabbitmq.py` and `sqs.py` are two."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """What a queue delivered; `receipt` acknowledges it."""

    value: bytes
    time_ms: int
    receipt: Any


class Client(Protocol):
    """A connection to one queue; its errors are ours (`errors.py`)."""

    name: str
    """What the queue is called, with its kind: rabbitmq:ratings."""
    place: str
    """Where it is, so that another queue of the same name is another topic."""

    def receive(self, most: int, wait_seconds: float) -> list[Message]:
        """Return what is there, at most so many; after `wait_seconds` nothing."""
        ...

    def acknowledge(self, receipts: list[Any]) -> None:
        """Let the queue forget messages, in the order in which they were received."""
        ...

    def waiting(self) -> int:
        """Return about how many messages are in the queue and not received."""
        ...
