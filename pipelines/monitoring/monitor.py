"""Monitoring of a long-lived process: metrics, health, and periodic measurements of lag.

Owns the measuring threads, and the callbacks that connect the loops to metrics and health. Measuring is read-only: a
failure is counted and logged, and the work continues.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple

from pipelines.boundary.extras import extra
from pipelines.errors import KarmalakeError, is_termination
from pipelines.monitoring.health import Health
from pipelines.monitoring.metrics import IngestMetrics, NotifyMetrics, RelayMetrics, ServeMetrics, StreamMetrics
from pipelines.settings import KafkaSettings, Settings

if TYPE_CHECKING:
    from pipelines.dlq import CopyProgress
    from pipelines.feed_relay import RelayProgress
    from pipelines.ingest.guard import HaltedPartition
    from pipelines.lake.commit import CommitRecord
    from pipelines.operate.lag.observe import WorkLog
    from pipelines.reputation.derive import DerivationResult
    from pipelines.serving.publish import PublishResult

A = TypeVarTuple("A")
_LOG = logging.getLogger(__name__)
M = TypeVar("M", bound=IngestMetrics | ServeMetrics | RelayMetrics | NotifyMetrics)
Ingesting = TypeVar("Ingesting", bound=IngestMetrics)


@dataclass(frozen=True, slots=True)
class Monitor(Generic[M]):
    """The metrics and health of this process."""

    metrics: M
    health: Health
    address: str | None
    """host:port where they are served; None if they are not."""

    def record_turn(self, loop: str, outage: KarmalakeError | None = None) -> None:
        """Record a turn of a loop; `outage` is the error that ended it early."""
        self.metrics.loops.record_turn(loop, outage)
        self.health.record_retry(loop) if outage else self.health.record_success(loop)

    def record_failure(self, loop: str, error: BaseException) -> None:  # noqa: ARG002 - signature of the callback
        """Record that a bug ended a loop or part of it, even if it restarted."""
        self.metrics.loops.record_failure(loop)
        self.health.record_failure(loop)


@contextmanager
def monitor_process(
    metrics: M, loops: Iterable[str], settings: Settings, background: Iterable[str] = ()
) -> Generator[Monitor[M]]:
    """Yield the monitor of a process with these loops and background loops; serve it over HTTP if a port is set.

    Raises ConfigurationError if it cannot listen on that port.
    """
    health = Health(loops, settings.metrics.stalled_after_seconds, background)
    if settings.metrics.port is None:
        yield Monitor(metrics, health, None)
        return
    from pipelines.monitoring.server import serve_metrics  # noqa: PLC0415 - only needed if metrics are served

    with serve_metrics(settings.metrics, metrics.registry.collectors, health) as address:
        yield Monitor(metrics, health, address)


@contextmanager
def measure_periodically(
    monitor: Monitor[M], name: str, measure: Callable[[], None], seconds: float
) -> Generator[None]:
    """Call `measure` immediately and then every `seconds` in a separate thread, until the block exits.

    Any error it raises is an outage of the loop `name`; measuring continues. On exit, waits for a running measurement.
    """
    stopping = threading.Event()

    def loop() -> None:
        failed = False
        while not stopping.is_set():
            try:
                measure()
            except BaseException as error:  # a Rust panic is not an Exception
                if is_termination(error):
                    raise
                _log_failure(name, error, seconds, again=failed)
                monitor.record_turn(name, error if isinstance(error, KarmalakeError) else KarmalakeError(repr(error)))
                failed = True
            else:
                monitor.record_turn(name)
                failed = False
            stopping.wait(seconds)

    with ThreadPoolExecutor(1, name) as pool:
        running = pool.submit(loop)
        try:
            yield
        finally:
            stopping.set()
    running.result()


def _log_failure(name: str, error: BaseException, seconds: float, *, again: bool) -> None:
    """Log a failed measurement: an outage every time, a bug with its traceback only the first time in a row."""
    if isinstance(error, KarmalakeError):
        _LOG.warning("%s: %s; trying again in %.0f s", name, error, seconds)
    elif not again:
        _LOG.error("%s failed: %r; trying again every %.0f s", name, error, seconds, exc_info=error)


@dataclass(frozen=True, slots=True)
class IngestMonitor(Generic[Ingesting]):
    """The monitor of a process that ingests, and the work done between two measurements of lag."""

    monitor: Monitor[Ingesting]
    work: "WorkLog"

    def committed(self, record: "CommitRecord") -> None:
        """Count a commit."""
        self.monitor.metrics.committed(record)
        self.work.committed(record)

    def halted(self, halted: "tuple[HaltedPartition, ...]") -> None:
        """Set the halted topic partitions."""
        self.monitor.metrics.halted(len(halted))
        self.monitor.health.notices = [str(place) for place in halted]

    def copied(self, turn: "CopyProgress") -> None:
        """Count copies of dead letters."""
        self.monitor.metrics.copied(turn)


@dataclass(frozen=True, slots=True)
class StreamMonitor(IngestMonitor[StreamMetrics]):
    """The monitor of a process that also derives and serves."""

    def refreshed(self, derived: "DerivationResult", published: "PublishResult") -> None:
        """Count a refresh."""
        self.monitor.metrics.refreshed(derived, published)
        self.work.refreshed(derived, published)

    def relayed(self, progress: "RelayProgress") -> None:
        """Count changes of the feed."""
        self.monitor.metrics.relayed(progress)


@contextmanager
def monitor_ingest(settings: Settings) -> Generator[IngestMonitor[IngestMetrics]]:
    """Yield the monitor of `karmalake ingest`; the lag of every topic is measured and recorded in the background."""
    with _measuring_lag(settings, IngestMetrics(), ("ingest",)) as (monitor, work):
        yield IngestMonitor(monitor, work)


@contextmanager
def monitor_stream(settings: Settings) -> Generator[StreamMonitor]:
    """Yield the monitor of `karmalake stream`; the lag of every topic is measured and recorded in the background."""
    with _measuring_lag(settings, StreamMetrics(), ("ingest", "refresh"), _feed_loops(settings)) as (monitor, work):
        yield StreamMonitor(monitor, work)


@contextmanager
def monitor_serve(settings: Settings) -> Generator[Monitor[ServeMetrics]]:
    """Yield the monitor of `karmalake serve`."""
    with monitor_process(ServeMetrics(), ("follow", "refresh"), settings, _feed_loops(settings)) as monitor:
        yield monitor


def _feed_loops(settings: Settings) -> list[str]:
    return ["feed"] if settings.relays_feed else []


@contextmanager
def _measuring_lag(
    settings: Settings, metrics: Ingesting, loops: Iterable[str], others: Iterable[str] = ()
) -> Generator[tuple[Monitor[Ingesting], "WorkLog"]]:
    from pipelines.operate.lag.observe import WorkLog, observe_lags  # noqa: PLC0415 - a relay does not need the lake's libraries

    work = WorkLog()
    copies = ["dlq"] if settings.ingest.publish_dead_letters else []
    background = ["lag", *copies, *others]
    with monitor_process(metrics, loops, settings, background) as monitor:

        def measure() -> None:
            monitor.metrics.observed(observe_lags(settings, work.take()))

        with measure_periodically(monitor, "lag", measure, settings.lag.interval_seconds):
            yield monitor, work


@contextmanager
def monitor_relay(settings: Settings, address: str) -> Generator[Monitor[RelayMetrics]]:
    """Yield the monitor of `karmalake relay`; if served, the outbox at `address` is measured in the background."""
    with extra("outbox", "measuring the outbox"):
        from pipelines.emit.outbox.backlog import measure_backlog  # noqa: PLC0415 - a notifier does not need SQLAlchemy

    with monitor_process(RelayMetrics(), ("relay",), settings, ("backlog",)) as monitor:

        def measure() -> None:
            monitor.metrics.waiting(measure_backlog(address))

        with (
            measure_periodically(monitor, "backlog", measure, settings.lag.interval_seconds)
            if monitor.address
            else nullcontext()
        ):
            yield monitor


@contextmanager
def monitor_notify(settings: Settings, destinations: Mapping[str, KafkaSettings]) -> Generator[Monitor[NotifyMetrics]]:
    """Yield the monitor of `karmalake notify`; if served, the lag of each destination on its topic is measured."""
    from pipelines.operate.lag.measure import measure_group  # noqa: PLC0415 - a relay does not need the lake's libraries

    with monitor_process(NotifyMetrics(), tuple(destinations), settings, ("lag",)) as monitor:

        def measure() -> None:
            for name, kafka in destinations.items():
                monitor.metrics.record_lag(name, measure_group(kafka, f"{settings.notify.group_id}.{name}"))

        with (
            measure_periodically(monitor, "lag", measure, settings.lag.interval_seconds)
            if monitor.address
            else nullcontext()
        ):
            yield monitor


def call_all(*callbacks: Callable[[*A], None]) -> Callable[[*A], None]:
    """Return a callback that calls all of the given ones, in order."""

    def call(*arguments: *A) -> None:
        for callback in callbacks:
            callback(*arguments)

    return call
