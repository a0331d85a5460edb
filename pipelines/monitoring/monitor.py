"""What a long-lived process tells of itself: metrics, health and, every some seconds, how far it is behind.

Owns the threads that measure beside the work, and what joins the loops' callbacks to metrics and health. Measuring
only reads: where it fails, that is counted and logged, and the work goes on.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple

from pipelines.errors import KarmalakeError
from pipelines.monitoring.health import Health
from pipelines.monitoring.metrics import NotifyMetrics, RelayMetrics, StreamMetrics
from pipelines.settings import Settings

if TYPE_CHECKING:
    from pipelines.dlq import Turn
    from pipelines.ingest.guard import Halted
    from pipelines.lake.commit import CommitRecord
    from pipelines.operate.lag.watch import WorkLog
    from pipelines.reputation.derive import Derived
    from pipelines.serving.publish import Published

A = TypeVarTuple("A")
_LOG = logging.getLogger(__name__)
M = TypeVar("M", StreamMetrics, RelayMetrics, NotifyMetrics)


@dataclass(frozen=True, slots=True)
class Monitor(Generic[M]):
    """The metrics and the health of this process."""

    metrics: M
    health: Health
    address: str | None
    """host:port where they are served; None if they are not."""

    def turned(self, loop: str, outage: KarmalakeError | None = None) -> None:
        """Note that a loop turned; `outage` is what kept it from succeeding."""
        self.metrics.loops.turned(loop, outage)
        self.health.retrying(loop) if outage else self.health.succeeded(loop)

    def failed(self, loop: str, error: BaseException) -> None:  # noqa: ARG002 - as a report of a loop has it
        """Note that a bug ended a loop or a part of it, though it began again."""
        self.metrics.loops.failed(loop)
        self.health.failed(loop)


@contextmanager
def monitored(
    metrics: M, loops: Iterable[str], settings: Settings, beside: Iterable[str] = ()
) -> Generator[Monitor[M]]:
    """Yield the monitor of a process with these loops, and others beside; serve it over HTTP if there is a port.

    Raises ConfigurationError where it cannot listen.
    """
    health = Health(loops, settings.metrics.stalled_after_seconds, beside)
    if settings.metrics.port is None:
        yield Monitor(metrics, health, None)
        return
    from pipelines.monitoring.server import serving  # noqa: PLC0415 - a process that serves none needs no server

    with serving(settings.metrics, metrics.book.registry, health) as address:
        yield Monitor(metrics, health, address)


@contextmanager
def measuring(monitor: Monitor[M], name: str, measure: Callable[[], None], seconds: float) -> Generator[None]:
    """Call `measure` at once and every `seconds` in a thread of its own, until the block is left.

    Whatever it raises is an outage of the loop `name`, and the next measurement is made: the work beside it goes on.
    A measurement under way is waited for.
    """
    stopping = threading.Event()

    def loop() -> None:
        failed = False
        while not stopping.is_set():
            try:
                measure()
            except BaseException as error:  # noqa: BLE001 - the thread would end unseen
                _say_failed(name, error, seconds, again=failed)
                monitor.turned(name, error if isinstance(error, KarmalakeError) else KarmalakeError(repr(error)))
                failed = True
            else:
                monitor.turned(name)
                failed = False
            stopping.wait(seconds)

    with ThreadPoolExecutor(1, name) as pool:
        running = pool.submit(loop)
        try:
            yield
        finally:
            stopping.set()
    running.result()


def _say_failed(name: str, error: BaseException, seconds: float, *, again: bool) -> None:
    """Log a measurement that failed: an outage each time, a defect with its traceback the first time in a row."""
    if isinstance(error, KarmalakeError):
        _LOG.warning("%s: %s; trying again in %.0f s", name, error, seconds)
    elif not again:
        _LOG.error("%s failed: %r; trying again every %.0f s", name, error, seconds, exc_info=error)


@dataclass(frozen=True, slots=True)
class StreamMonitor:
    """The monitor of `karmalake stream`, with what it does between two measurements of lag."""

    monitor: Monitor[StreamMetrics]
    work: "WorkLog"

    def committed(self, record: "CommitRecord") -> None:
        """Count a commit."""
        self.monitor.metrics.committed(record)
        self.work.committed(record)

    def halted(self, halted: "tuple[Halted, ...]") -> None:
        """Show which topic partitions are halted."""
        self.monitor.metrics.halted(len(halted))
        self.monitor.health.remarks = [str(place) for place in halted]

    def copied(self, turn: "Turn") -> None:
        """Count copies of dead letters."""
        self.monitor.metrics.copied(turn)

    def refreshed(self, derived: "Derived", published: "Published") -> None:
        """Count a refresh."""
        self.monitor.metrics.refreshed(derived, published)
        self.work.refreshed(derived, published)


@contextmanager
def monitoring_stream(settings: Settings) -> Generator[StreamMonitor]:
    """Yield the monitor of `karmalake stream`; beside the work, the lag of a topic is observed and kept."""
    from pipelines.operate.lag.watch import WorkLog, observe_lag  # noqa: PLC0415 - a relay does without the lake's libraries

    work = WorkLog()
    beside = [*([] if settings.queue.kind else ["lag"]), *(["dlq"] if settings.ingest.publish_dead_letters else [])]
    with monitored(StreamMetrics(), ("ingest", "refresh"), settings, beside) as monitor:

        def measure() -> None:
            monitor.metrics.observed(observe_lag(settings, work.take()))

        interval = settings.lag.interval_seconds
        with nullcontext() if settings.queue.kind else measuring(monitor, "lag", measure, interval):
            yield StreamMonitor(monitor, work)


@contextmanager
def monitoring_relay(settings: Settings, address: str) -> Generator[Monitor[RelayMetrics]]:
    """Yield the monitor of `karmalake relay`; if it is served, the outbox at `address` is measured beside the work."""
    from pipelines.emit.outbox.backlog import measure_backlog  # noqa: PLC0415 - a notifier does without SQLAlchemy

    with monitored(RelayMetrics(), ("relay",), settings, ("backlog",)) as monitor:

        def measure() -> None:
            monitor.metrics.waiting(measure_backlog(address))

        with (
            measuring(monitor, "backlog", measure, settings.lag.interval_seconds) if monitor.address else nullcontext()
        ):
            yield monitor


@contextmanager
def monitoring_notify(settings: Settings, destinations: Sequence[str]) -> Generator[Monitor[NotifyMetrics]]:
    """Yield the monitor of `karmalake notify`; if it is served, the lag of each destination is measured beside it."""
    from pipelines.operate.lag.measure import measure_group  # noqa: PLC0415 - a relay does without the lake's libraries

    with monitored(NotifyMetrics(), destinations, settings, ("lag",)) as monitor:

        def measure() -> None:
            for name in destinations:
                monitor.metrics.behind(name, measure_group(settings.kafka, f"{settings.notify.group_id}.{name}"))

        with measuring(monitor, "lag", measure, settings.lag.interval_seconds) if monitor.address else nullcontext():
            yield monitor


def each(*callbacks: Callable[[*A], None]) -> Callable[[*A], None]:
    """Return a callback that calls all of them, in their order."""

    def call(*arguments: *A) -> None:
        for callback in callbacks:
            callback(*arguments)

    return call
