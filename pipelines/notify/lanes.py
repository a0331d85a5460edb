"""The threads that deliver to one destination: all notifications of a user go through one lane, in order.

A lane that hangs delays only its own users of that destination. In quiet times all of them wait. Independent of Kafka:
the reader submits deliveries and polls their results.
"""

import contextlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from pipelines.notify.delivery import (
    DeliveryResult,
    Notification,
    Outcome,
    Redact,
    Transport,
    attempt_delivery,
    deliver_with_retry,
    describe_error,
)

_POLL_SECONDS = 1.0
"""How often a delivery that waits asks whether it still has to."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A notification in flight, with the record it comes from."""

    record: Any
    """kafka-python's ConsumerRecord."""
    notification: Notification
    revoked: bool = False
    """True once its topic partition belongs to another notifier, which will deliver it."""


class Lanes:
    """One thread per transport; `submit` and `poll_results` must be called from one other thread."""

    def __init__(
        self,
        transports: Sequence[Transport],
        attempts: int,
        is_quiet: Callable[[], bool],
        redact: Redact = lambda event: event,
    ) -> None:
        self.in_flight = 0
        self.failure: str | None = None
        """Why a lane ended by a bug. Its deliveries never get a result, so new lanes are needed."""
        self._attempts, self._is_quiet, self._redact = attempts, is_quiet, redact
        self._stopping = threading.Event()
        self._failures: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[Delivery, DeliveryResult]] = queue.SimpleQueue()
        self._queues: list[queue.SimpleQueue[Delivery | None]] = [queue.SimpleQueue() for _ in transports]
        self._threads = [_start(self._work, *pair) for pair in zip(self._queues, transports, strict=True)]

    def submit(self, delivery: Delivery) -> None:
        """Queue a delivery, after earlier ones of the same user."""
        self.in_flight += 1
        user_id = delivery.notification.event.user_id.encode("utf-8", "surrogatepass")
        self._queues[zlib.crc32(user_id) % len(self._queues)].put(delivery)

    def poll_results(self, wait_seconds: float) -> Iterator[tuple[Delivery, DeliveryResult]]:
        """Yield finished deliveries, waiting up to `wait_seconds` for the first; RETRY means not delivered."""
        deadline = monotonic() + wait_seconds
        while self.in_flight:
            try:
                answered = self._answered.get(timeout=max(0.0, deadline - monotonic()))
            except queue.Empty:
                return
            self.in_flight -= 1
            deadline = monotonic()
            yield answered

    def failed_attempts(self) -> list[str]:
        """Return the reasons of the attempts that failed, and may be repeated, since the last call."""
        return [self._failures.get() for _ in range(self._failures.qsize())]

    def stop(self, seconds: float) -> None:
        """Start no more deliveries, and wait up to `seconds` for those in flight; the rest end with the process."""
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
        except BaseException as error:  # noqa: BLE001 - attempts do not raise, so this is a bug; the branch reports it
            self.failure = describe_error(error)
        finally:
            with contextlib.suppress(BaseException):
                transport.close()

    def _deliver(self, delivery: Delivery, transport: Transport) -> DeliveryResult:
        return deliver_with_retry(
            lambda: self._attempt(delivery, transport), self._attempts, lambda pause: self._is_due(delivery, pause)
        )

    def _attempt(self, delivery: Delivery, transport: Transport) -> DeliveryResult:
        event = self._redact(delivery.notification.event)
        if event is None:
            return DeliveryResult(Outcome.ERASED)
        answer = attempt_delivery(transport, replace(delivery.notification, event=event))
        if answer.outcome is Outcome.RETRY:
            self._failures.put(answer.reason)
        return answer

    def _is_due(self, delivery: Delivery, pause: float) -> bool:
        """Wait for the pause and the end of quiet times; return whether the delivery is still this notifier's.

        One that is revoked meanwhile, or whose user is erased, does not hold the lane: receivers ask for up to an hour.
        """
        due, stopped = monotonic() + pause, self._stopping.is_set()
        while not (stopped or delivery.revoked) and (seconds := self._seconds_to_wait(delivery, due)):
            stopped = self._stopping.wait(seconds)
        return not (stopped or delivery.revoked)

    def _seconds_to_wait(self, delivery: Delivery, due: float) -> float:
        if self._redact(delivery.notification.event) is None:
            return 0.0
        if (left := due - monotonic()) > 0:
            return min(left, _POLL_SECONDS)
        return _POLL_SECONDS if self._is_quiet() else 0.0


def _start(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, name="notify lane", daemon=True)
    thread.start()
    return thread
