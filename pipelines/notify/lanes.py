"""The threads that deliver to one destination: a user's notifications go through one lane, in order.

A lane that hangs holds up the users of that lane of that destination, and nobody else. Nothing here knows the bus:
who reads it hands deliveries over, and collects what became of them.
"""

import contextlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pipelines.notify.answers import Answer, Notification, Transport, Verdict, attempted, described, insist

_NOT_TRIED = Answer(Verdict.LATER, "was not tried")


@dataclass(slots=True, eq=False)
class Delivery:
    """A notification under way, with the record it comes from."""

    record: Any
    """kafka-python's ConsumerRecord."""
    notification: Notification
    withdrawn: bool = False
    """Set when its topic partition went to another notifier, which will deliver it."""


class Lanes:
    """One thread for each transport; `hand` and `collect` are for one other thread."""

    def __init__(self, transports: Sequence[Transport], attempts: int) -> None:
        self.in_flight = 0
        self.broken: str | None = None
        """Why a lane ended that was not told to: what it was handed is never answered; new lanes are needed."""
        self._attempts = attempts
        self._stopping = threading.Event()
        self._answered: queue.SimpleQueue[tuple[Delivery, Answer]] = queue.SimpleQueue()
        self._queues: list[queue.SimpleQueue[Delivery | None]] = [queue.SimpleQueue() for _ in transports]
        self._threads = [_start(self._work, *pair) for pair in zip(self._queues, transports, strict=True)]

    def hand(self, delivery: Delivery) -> None:
        """Let a delivery begin, after those of the same user that were handed over before."""
        self.in_flight += 1
        user_id = delivery.notification.event.user_id.encode("utf-8", "surrogatepass")
        self._queues[zlib.crc32(user_id) % len(self._queues)].put(delivery)

    def collect(self, wait_seconds: float) -> Iterator[tuple[Delivery, Answer]]:
        """Yield what was answered; if nothing is, wait for the first answer. LATER was not delivered."""
        deadline = monotonic() + wait_seconds
        while self.in_flight:
            try:
                answered = self._answered.get(timeout=max(0.0, deadline - monotonic()))
            except queue.Empty:
                return
            self.in_flight -= 1
            deadline = monotonic()
            yield answered

    def stop(self, seconds: float) -> None:
        """Begin nothing more, and wait so long for what is under way; what still hangs then ends with the process."""
        self._stopping.set()
        for waiting in self._queues:
            waiting.put(None)
        deadline = monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _work(self, waiting: "queue.SimpleQueue[Delivery | None]", transport: Transport) -> None:
        try:
            while (delivery := waiting.get()) is not None:
                self._answered.put((delivery, self._deliver(delivery, transport)))
        except BaseException as error:  # noqa: BLE001 - an attempt cannot raise: a bug, which the branch is told of
            self.broken = described(error)
        finally:
            with contextlib.suppress(BaseException):
                transport.close()

    def _deliver(self, delivery: Delivery, transport: Transport) -> Answer:
        if delivery.withdrawn or self._stopping.is_set():
            return _NOT_TRIED
        return insist(lambda: attempted(transport, delivery.notification), self._attempts, self._stopping)


def _start(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, name="notify lane", daemon=True)
    thread.start()
    return thread
