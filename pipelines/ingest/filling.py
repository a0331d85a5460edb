"""When a batch is complete: at its limits, or when `ingest.linger_seconds` have passed since its first record.

A linger of 0 waits for nothing: the batch then ends where the source has no more, as in a `drain`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

from pipelines.settings import Settings

Clock = Callable[[], float]
"""Returns seconds of a monotonic clock."""
NEVER = threading.Event()
"""For a source whose waits no signal ends; it is never set."""
SLICE_MS = 100
"""The longest single wait for records, so that the end of the process need not wait longer."""
_DRAIN_WAIT_SECONDS = 0.05
"""A few round trips to a broker. Zero would poll the end offsets in a busy loop."""
_MAX_SECONDS_WITHOUT_LINGER = 3.0
"""A source to which records keep coming has no end."""


@dataclass(slots=True)
class Filling:
    """A batch from its first record on: the room and the time that it has left."""

    records_left: int
    bytes_left: int
    linger_seconds: InitVar[float]
    clock: Clock = time.monotonic
    lingers: bool = field(init=False)
    """Whether the batch waits for records still to come."""
    _deadline: float = field(init=False)

    def __post_init__(self, linger_seconds: float) -> None:
        """Begin at the first record."""
        self.lingers = linger_seconds > 0
        self._deadline = self.clock() + (linger_seconds if self.lingers else _MAX_SECONDS_WITHOUT_LINGER)

    def add(self, records: int, size: int) -> None:
        """Count more records, of `size` bytes. The last ones may exceed a limit."""
        self.records_left -= records
        self.bytes_left -= size

    def seconds_left(self) -> float:
        """Return how long the batch may still be filled; 0 once it is complete."""
        is_full = self.records_left <= 0 or self.bytes_left <= 0
        return 0.0 if is_full else max(0.0, self._deadline - self.clock())


def without_waiting(settings: Settings) -> Settings:
    """Return settings to read a topic to its end: polls do not wait for records still to come."""
    ingest = settings.ingest.model_copy(update={"max_wait_seconds": _DRAIN_WAIT_SECONDS, "linger_seconds": 0})
    return settings.model_copy(update={"ingest": ingest})
