"""The metrics of the long-lived processes, by Prometheus' conventions: names, labels and help texts.

Owns every name; docs/metrics.md is generated from this module. The methods are called from the callbacks of the loops,
so no stage depends on metrics. Each process has its own registry; nothing is global. `server.py` serves them;
`monitor.py` measures what the loops do not report.
"""

import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

if TYPE_CHECKING:  # no process imports what only the others need
    from collections.abc import Sequence

    from pipelines.dlq import CopyProgress
    from pipelines.emit.outbox.backlog import Backlog
    from pipelines.emit.relay import RelayedBatch
    from pipelines.errors import KarmalakeError
    from pipelines.feed_relay import RelayProgress
    from pipelines.lake.commit import CommitRecord
    from pipelines.notify.branch import DeliveryCounts
    from pipelines.operate.lag.measure import Lag
    from pipelines.operate.lag.observe import Observation
    from pipelines.reputation.derive import DerivationResult
    from pipelines.serving.publish import PublishResult

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_OUTCOMES = {
    "accepted": "accepted",
    "duplicates": "duplicate",
    "conflicts": "conflict",
    "dead_letters": "dead_letter",
    "filtered": "filtered",
}


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric as documented."""

    name: str
    """As exposed; the series of a histogram add _bucket, _sum and _count."""
    kind: Literal["counter", "gauge", "histogram", "info"]
    text: str
    labels: tuple[str, ...]


class MetricRegistry:
    """The collector registry of one process, with the description of each metric in it."""

    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        self.entries: list[MetricInfo] = []
        ProcessCollector(registry=self.collectors)
        self.entries.append(MetricInfo("karmalake_build_info", "info", "The running version; always 1.", ("version",)))
        info = Info("karmalake_build", "The running version; always 1.", registry=self.collectors)
        info.info({"version": version("karmalake")})

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Register a counter; its name ends in _total."""
        self.entries.append(MetricInfo(name, "counter", text, labels))
        return Counter(name, text, labels, registry=self.collectors)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Register a gauge."""
        self.entries.append(MetricInfo(name, "gauge", text, labels))
        return Gauge(name, text, labels, registry=self.collectors)

    def seconds(self, name: str, text: str, *labels: str) -> Histogram:
        """Register a histogram of seconds."""
        self.entries.append(MetricInfo(name, "histogram", text, labels))
        return Histogram(name, text, labels, registry=self.collectors, buckets=_SECONDS)


class LoopMetrics:
    """Metrics of the loops, common to every process."""

    def __init__(self, registry: MetricRegistry) -> None:
        self._turned = registry.gauge(
            "karmalake_loop_last_turn_timestamp_seconds", "Time of a loop's last turn, successful or not.", "loop"
        )
        self._outages = registry.counter(
            "karmalake_loop_outages_total",
            "Turns that ended early, mostly because a service did not respond; nothing is lost, the loop retries.",
            "loop",
        )
        self._failures = registry.counter(
            "karmalake_loop_failures_total",
            "Turns that ended because of a bug, see the log; the loop restarts, and /healthz returns 503.",
            "loop",
        )

        self._retrying = registry.gauge(
            "karmalake_loop_retrying_seconds",
            "How long a loop has been retrying, as of its last turn; 0 if that turn succeeded.",
            "loop",
        )
        self._retrying_since: dict[str, float] = {}

    def record_turn(self, loop: str, outage: "KarmalakeError | None") -> None:
        """Count a turn of a loop; `outage` is the error that ended it early."""
        self._turned.labels(loop).set_to_current_time()
        self._retrying.labels(loop).set(self._retried(loop) if outage else 0)
        if outage is None:
            self._retrying_since.pop(loop, None)
        outages = self._outages.labels(loop)
        self._failures.labels(loop)
        if outage is not None:
            outages.inc()

    def record_failure(self, loop: str) -> None:
        """Count a turn that a bug ended."""
        self._failures.labels(loop).inc()

    def _retried(self, loop: str) -> float:
        now = time.monotonic()
        return now - self._retrying_since.setdefault(loop, now)


class IngestMetrics:
    """The metrics of `karmalake ingest`."""

    def __init__(self) -> None:
        self.registry = MetricRegistry()
        self.loops = LoopMetrics(self.registry)
        self._ingest(self.registry)
        self._dead_letters(self.registry)
        self._lag(self.registry)

    def _ingest(self, registry: MetricRegistry) -> None:
        self._records = registry.counter(
            "karmalake_ingest_records_total",
            "Committed events by outcome, accepted, duplicate or conflict, and records that are none: dead_letter, or "
            "filtered by their source.",
            "outcome",
        )
        for outcome in _OUTCOMES.values():
            self._records.labels(outcome)
        self._mis_keyed = registry.counter(
            "karmalake_ingest_mis_keyed_records_total", "Accepted records whose key differs from their user_id."
        )
        self._halted = registry.gauge(
            "karmalake_halted_partitions",
            "Topic partitions whose reading is halted, because too many of their records are rejected.",
        )
        self._commits = registry.seconds(
            "karmalake_ingest_commit_duration_seconds", "Time from a batch in memory to its commit in the lake."
        )
        self._version = registry.gauge("karmalake_lake_version", "The last committed lake version.")

    def _dead_letters(self, registry: MetricRegistry) -> None:
        self._copies = registry.counter(
            "karmalake_dlq_records_total",
            "Dead letters sent to the dead letter topic, by outcome: whole, truncated, or refused (not published).",
            "outcome",
        )
        for outcome in ("whole", "truncated", "refused"):
            self._copies.labels(outcome)
        self._waiting = registry.gauge(
            "karmalake_dlq_waiting_records", "Dead letters in the lake that are not yet on the dead letter topic."
        )
        self._waiting_since = math.inf
        waiting = registry.gauge(
            "karmalake_dlq_waiting_seconds", "How long the oldest of them has been waiting; 0 if there is none."
        )
        waiting.set_function(lambda: max(0.0, time.time() - self._waiting_since))

    def _lag(self, registry: MetricRegistry) -> None:
        place = ("topic", "topic_partition")
        self._end = registry.gauge("karmalake_topic_end_offset", "End offset of the log.", *place)
        self._next = registry.gauge(
            "karmalake_checkpoint_next_offset", "Next offset that ingest reads; absent before the first commit.", *place
        )
        self._behind = registry.gauge(
            "karmalake_lag_records", "Records in the log that are not yet in the lake.", *place
        )
        self._behind_seconds = registry.gauge(
            "karmalake_lag_seconds",
            "Time on the bus of the oldest record that is not yet in the lake; NaN if unknown, estimated for a queue.",
            *place,
        )
        self._catch_up = registry.gauge(
            "karmalake_lag_catch_up_seconds",
            "Estimated time until the lag is zero, at the rate since the last measurement; +Inf if unknown.",
            "topic",
        )
        self._advice = registry.gauge(
            "karmalake_lag_advices", "Number of recommendations that `karmalake lag` currently has; 0 if all is well."
        )

    def committed(self, record: "CommitRecord") -> None:
        """Count a commit."""
        for count, outcome in _OUTCOMES.items():
            self._records.labels(outcome).inc(record.total(count))
        self._mis_keyed.inc(record.mis_keyed)
        self._version.set(record.version)
        if record.committed is not None:
            self._commits.observe(max(0.0, (record.committed - record.started).total_seconds()))

    def halted(self, partitions: int) -> None:
        """Set the number of halted topic partitions."""
        self._halted.set(partitions)

    def copied(self, turn: "CopyProgress") -> None:
        """Count copies of dead letters, and set what is waiting."""
        written = turn.written
        self._copies.labels("whole").inc(written.published - written.truncated)
        self._copies.labels("truncated").inc(written.truncated)
        self._copies.labels("refused").inc(written.refused)
        self._waiting.set(turn.pending_records)
        self._waiting_since = turn.pending_since.timestamp() if turn.pending_since else math.inf

    def observed(self, observations: "Sequence[Observation]") -> None:
        """Set the gauges of a measurement of the lag of every topic."""
        for observation in observations:
            self._observed(observation)
        self._advice.set(len({advice for observation in observations for advice in observation.advice}))

    def _observed(self, observation: "Observation") -> None:
        topic = observation.measurement.topic
        for lag in observation.measurement.partitions:
            place = (topic, str(lag.topic_partition))
            self._end.labels(*place).set(lag.end_offset)
            self._behind.labels(*place).set(lag.lag_records)
            self._behind_seconds.labels(*place).set(_or_nan(lag.lag_seconds))
            if lag.next_offset is not None:
                self._next.labels(*place).set(lag.next_offset)
        foreseen = observation.catch_up_seconds
        self._catch_up.labels(topic).set(math.inf if foreseen is None else foreseen)


class _Serving:
    """What a process derives and serves."""

    def refreshed(self, derived: "DerivationResult", published: "PublishResult") -> None:
        """Count a published refresh."""
        self._refreshes.labels("derive").observe(derived.seconds)
        self._refreshes.labels("publish").observe(published.seconds)
        self._documents.labels("written").inc(published.written)
        self._documents.labels("deleted").inc(published.deleted)
        self._recorded.inc(published.changes or 0)
        self._published.set(derived.lake_version)
        self._as_of = derived.as_of.timestamp()

    def relayed(self, progress: "RelayProgress") -> None:
        """Count changes of the feed that were relayed, and set what is waiting."""
        self._relayed.inc(progress.relayed)
        self._feed_waiting.set(progress.waiting)

    def _add_serving(self, registry: MetricRegistry) -> None:
        self._refreshes = registry.seconds(
            "karmalake_refresh_duration_seconds", "Duration of a refresh, by step: derive or publish.", "step"
        )
        self._documents = registry.counter(
            "karmalake_published_documents_total",
            "Documents changed in the serving store, by change: written or deleted.",
            "change",
        )
        self._recorded = registry.counter(
            "karmalake_feed_recorded_changes_total", "Changes that publications of this process recorded in the feed."
        )
        self._relayed = registry.counter(
            "karmalake_feed_relayed_changes_total", "Changes of the feed that the brokers have acknowledged."
        )
        self._feed_waiting = registry.gauge(
            "karmalake_feed_waiting_changes", "Changes of the feed in the lake that are not yet on its topic."
        )
        self._published = registry.gauge("karmalake_published_lake_version", "The lake version that is served.")
        self._as_of = math.nan
        staleness = registry.gauge(
            "karmalake_staleness_seconds",
            "Age of the scores that this process last published; NaN before its first publication.",
        )
        staleness.set_function(lambda: max(0.0, time.time() - self._as_of))


class ServeMetrics(_Serving):
    """The metrics of `karmalake serve`."""

    def __init__(self) -> None:
        self.registry = MetricRegistry()
        self.loops = LoopMetrics(self.registry)
        self._add_serving(self.registry)


class StreamMetrics(IngestMetrics, _Serving):
    """The metrics of `karmalake stream`: those of ingest, and those of what it derives and serves."""

    def __init__(self) -> None:
        super().__init__()
        self._add_serving(self.registry)


class RelayMetrics:
    """The metrics of `karmalake relay`."""

    def __init__(self) -> None:
        self.registry = registry = MetricRegistry()
        self.loops = LoopMetrics(registry)
        self._rows = registry.counter(
            "karmalake_relay_rows_total", "Outbox rows acknowledged by the brokers and deleted."
        )
        self._bytes = registry.counter("karmalake_relay_bytes_total", "Size of the keys and values of those rows.")
        self._batches = registry.seconds(
            "karmalake_relay_batch_duration_seconds", "Duration of a batch of rows: lock, send, acknowledge, delete."
        )
        self._backlog = registry.gauge("karmalake_outbox_backlog_rows", "Committed rows waiting in the outbox.")
        self._oldest = registry.gauge(
            "karmalake_outbox_oldest_age_seconds", "Age of the oldest row in the outbox; 0 if there is none."
        )

    def relayed(self, done: "RelayedBatch") -> None:
        """Count a batch."""
        self._rows.inc(done.rows)
        self._bytes.inc(done.bytes)
        self._batches.observe(done.seconds)

    def waiting(self, backlog: "Backlog") -> None:
        """Set what is waiting in the outbox."""
        self._backlog.set(backlog.rows)
        self._oldest.set(backlog.oldest_age_seconds)


class NotifyMetrics:
    """The metrics of `karmalake notify`."""

    def __init__(self) -> None:
        self.registry = registry = MetricRegistry()
        self.loops = LoopMetrics(registry)
        self._delivered = registry.counter(
            "karmalake_notify_deliveries_total", "Notifications delivered to a destination.", "destination"
        )
        self._dead_letters = registry.counter(
            "karmalake_notify_dead_letters_total", "Notifications that became dead letters.", "destination"
        )
        self._failed = registry.counter(
            "karmalake_notify_failed_attempts_total",
            "Attempts that failed, after which a notification is tried again or becomes a dead letter.",
            "destination",
        )
        self._erased = registry.counter(
            "karmalake_notify_erased_total", "Notifications left out because their user was erased.", "destination"
        )
        self._malformed = registry.counter(
            "karmalake_notify_malformed_records_total",
            "Records skipped because they are not valid events.",
            "destination",
        )
        self._lost = registry.counter(
            "karmalake_notify_lost_records_total",
            "Offsets that were no longer in the topic when a destination was due to read them.",
            "destination",
        )
        place = ("destination", "topic_partition")
        self._behind = registry.gauge(
            "karmalake_notify_lag_records", "Records above the committed offset of a destination's group.", *place
        )
        self._behind_seconds = registry.gauge(
            "karmalake_notify_lag_seconds",
            "Time on the bus of the oldest record above the committed offset; NaN if no such record has a valid time.",
            *place,
        )

    def notified(self, destination: str, done: "DeliveryCounts") -> None:
        """Count what a destination did since its last report."""
        self._delivered.labels(destination).inc(done.delivered)
        self._dead_letters.labels(destination).inc(done.dead_letters)
        self._failed.labels(destination).inc(done.failed_attempts)
        self._erased.labels(destination).inc(done.erased)
        self._malformed.labels(destination).inc(done.malformed)
        self._lost.labels(destination).inc(sum(loss.lost for loss in done.losses))

    def record_lag(self, destination: str, lags: "tuple[Lag, ...]") -> None:
        """Set the lag of a destination."""
        for lag in lags:
            self._behind.labels(destination, str(lag.topic_partition)).set(lag.lag_records)
            self._behind_seconds.labels(destination, str(lag.topic_partition)).set(_or_nan(lag.lag_seconds))


def _or_nan(seconds: float | None) -> float:
    return math.nan if seconds is None else seconds


PROCESSES = {
    "stream": StreamMetrics,
    "ingest": IngestMetrics,
    "serve": ServeMetrics,
    "relay": RelayMetrics,
    "notify": NotifyMetrics,
}
"""The metrics class of each process, by command."""
