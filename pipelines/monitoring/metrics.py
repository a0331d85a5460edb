"""The metrics of the long-lived processes, by Prometheus' conventions: their names, labels and meaning.

Owns every name; docs/metrics.md is made from here. The processes call the methods from what their loops report
anyway, so no stage knows of metrics. Each process has a registry of its own: nothing is global. How they are fetched
is `server.py`, who measures what is not reported `monitor.py`.
"""

import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

if TYPE_CHECKING:  # no process needs what the others work with
    from pipelines.dlq import Turn
    from pipelines.emit.outbox.backlog import Backlog
    from pipelines.emit.relay import Relayed
    from pipelines.errors import KarmalakeError
    from pipelines.lake.commit import CommitRecord
    from pipelines.notify.branch import Tally
    from pipelines.operate.lag.measure import Lag
    from pipelines.operate.lag.watch import Observation
    from pipelines.reputation.derive import Derived
    from pipelines.serving.publish import Published

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_OUTCOMES = {"accepted": "accepted", "duplicates": "duplicate", "conflicts": "conflict", "dead_letters": "dead_letter"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A metric as it is documented."""

    name: str
    """As it is exposed: a histogram's series have _bucket, _sum and _count behind it."""
    kind: Literal["counter", "gauge", "histogram", "info"]
    text: str
    labels: tuple[str, ...]


class Book:
    """The registry of one process, and the entry of each metric in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.entries: list[Entry] = []
        ProcessCollector(registry=self.registry)
        self.entries.append(Entry("karmalake_build_info", "info", "The version that runs; always 1.", ("version",)))
        info = Info("karmalake_build", "The version that runs; always 1.", registry=self.registry)
        info.info({"version": version("karmalake")})

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Enter a counter; its name ends in _total."""
        self.entries.append(Entry(name, "counter", text, labels))
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Enter a gauge."""
        self.entries.append(Entry(name, "gauge", text, labels))
        return Gauge(name, text, labels, registry=self.registry)

    def seconds(self, name: str, text: str, *labels: str) -> Histogram:
        """Enter a histogram of seconds."""
        self.entries.append(Entry(name, "histogram", text, labels))
        return Histogram(name, text, labels, registry=self.registry, buckets=_SECONDS)


class LoopMetrics:
    """What every process has: the loops that turn in it."""

    def __init__(self, book: Book) -> None:
        self._turned = book.gauge(
            "karmalake_loop_last_turn_timestamp_seconds", "When a loop last turned, successfully or not.", "loop"
        )
        self._outages = book.counter(
            "karmalake_loop_outages_total",
            "Turns that ended early, mostly because a service did not answer; nothing is lost, the loop tries again.",
            "loop",
        )
        self._failures = book.counter(
            "karmalake_loop_failures_total",
            "Turns that ended by a bug, which the log names; the loop began again, and /healthz answers 503.",
            "loop",
        )

        self._retrying = book.gauge(
            "karmalake_loop_retrying_seconds",
            "For how long a loop has been retrying, at its last turn; 0 where that succeeded.",
            "loop",
        )
        self._retrying_since: dict[str, float] = {}

    def turned(self, loop: str, outage: "KarmalakeError | None") -> None:
        """Count a turn of a loop; `outage` is what ended it early."""
        self._turned.labels(loop).set_to_current_time()
        self._retrying.labels(loop).set(self._retried(loop) if outage else 0)
        if outage is None:
            self._retrying_since.pop(loop, None)
        outages = self._outages.labels(loop)
        self._failures.labels(loop)
        if outage is not None:
            outages.inc()

    def failed(self, loop: str) -> None:
        """Count a turn that a bug ended."""
        self._failures.labels(loop).inc()

    def _retried(self, loop: str) -> float:
        now = time.monotonic()
        return now - self._retrying_since.setdefault(loop, now)


class StreamMetrics:
    """The metrics of `karmalake stream`."""

    def __init__(self) -> None:
        self.book = Book()
        self.loops = LoopMetrics(self.book)
        self._ingest(self.book)
        self._dead_letters(self.book)
        self._lag(self.book)
        self._serving(self.book)

    def _ingest(self, book: Book) -> None:
        self._records = book.counter(
            "karmalake_ingest_records_total",
            "Records that commits read, by what became of them: accepted, duplicate, conflict or dead_letter.",
            "outcome",
        )
        for outcome in _OUTCOMES.values():
            self._records.labels(outcome)
        self._mis_keyed = book.counter(
            "karmalake_ingest_mis_keyed_records_total", "Accepted records whose key is not their user_id."
        )
        self._halted = book.gauge(
            "karmalake_halted_partitions",
            "Topic partitions that are not read on: too many of their records are rejected.",
        )
        self._commits = book.seconds(
            "karmalake_ingest_commit_duration_seconds", "From a batch in memory to its commit in the lake."
        )
        self._version = book.gauge("karmalake_lake_version", "The version of the lake that was committed last.")

    def _dead_letters(self, book: Book) -> None:
        self._copies = book.counter(
            "karmalake_dlq_records_total",
            "Dead letters for the topic of dead letters: whole, truncated, or refused and not published.",
            "outcome",
        )
        for outcome in ("whole", "truncated", "refused"):
            self._copies.labels(outcome)
        self._waiting = book.gauge(
            "karmalake_dlq_waiting_records", "Dead letters in the lake that are not on that topic yet."
        )
        self._waiting_since = math.inf
        waiting = book.gauge("karmalake_dlq_waiting_seconds", "How long the first of them has waited; 0 if none does.")
        waiting.set_function(lambda: max(0.0, time.time() - self._waiting_since))

    def _lag(self, book: Book) -> None:
        self._end = book.gauge("karmalake_topic_end_offset", "Where the log ends.", "topic_partition")
        self._next = book.gauge(
            "karmalake_checkpoint_next_offset", "What the lake reads next; absent before the first commit.",
            "topic_partition",
        )  # fmt: skip
        self._behind = book.gauge(
            "karmalake_lag_records", "Records in the log that are not in the lake.", "topic_partition"
        )
        self._behind_seconds = book.gauge(
            "karmalake_lag_seconds",
            "Age on the bus of the oldest record that is not in the lake; NaN if no record there has a valid time.",
            "topic_partition",
        )
        self._catch_up = book.gauge(
            "karmalake_lag_catch_up_seconds",
            "Until nothing lies behind, at the pace since the last measurement; +Inf if that cannot be foreseen.",
        )
        self._advice = book.gauge(
            "karmalake_lag_advices", "Sentences of advice that `karmalake lag` has now; 0 if all is well."
        )

    def _serving(self, book: Book) -> None:
        self._refreshes = book.seconds(
            "karmalake_refresh_duration_seconds", "Of a refresh, by its step: derive or publish.", "step"
        )
        self._documents = book.counter(
            "karmalake_published_documents_total", "Documents in Redis that changed: written or deleted.", "change"
        )
        self._published = book.gauge("karmalake_published_lake_version", "The version of the lake that is served.")
        self._as_of = math.nan
        staleness = book.gauge(
            "karmalake_staleness_seconds",
            "Age of the scores that this process published last; NaN before it published any.",
        )
        staleness.set_function(lambda: max(0.0, time.time() - self._as_of))

    def committed(self, record: "CommitRecord") -> None:
        """Count a commit."""
        for count, outcome in _OUTCOMES.items():
            self._records.labels(outcome).inc(record.total(count))
        self._mis_keyed.inc(record.mis_keyed)
        self._version.set(record.version)
        if record.committed is not None:
            self._commits.observe(max(0.0, (record.committed - record.started).total_seconds()))

    def halted(self, partitions: int) -> None:
        """Show how many topic partitions are halted."""
        self._halted.set(partitions)

    def copied(self, turn: "Turn") -> None:
        """Count copies of dead letters, and show what waits."""
        written = turn.written
        self._copies.labels("whole").inc(written.published - written.truncated)
        self._copies.labels("truncated").inc(written.truncated)
        self._copies.labels("refused").inc(written.refused)
        self._waiting.set(turn.waiting_records)
        self._waiting_since = turn.waiting_since.timestamp() if turn.waiting_since else math.inf

    def refreshed(self, derived: "Derived", published: "Published") -> None:
        """Count a refresh that was published."""
        self._refreshes.labels("derive").observe(derived.seconds)
        self._refreshes.labels("publish").observe(published.seconds)
        self._documents.labels("written").inc(published.written)
        self._documents.labels("deleted").inc(published.deleted)
        self._published.set(derived.lake_version)
        self._as_of = derived.as_of.timestamp()

    def observed(self, observation: "Observation") -> None:
        """Show a measurement of lag."""
        for lag in observation.measurement.partitions:
            place = str(lag.topic_partition)
            self._end.labels(place).set(lag.end_offset)
            self._behind.labels(place).set(lag.lag_records)
            self._behind_seconds.labels(place).set(_known(lag.lag_seconds))
            if lag.next_offset is not None:
                self._next.labels(place).set(lag.next_offset)
        foreseen = observation.catch_up_seconds
        self._catch_up.set(math.inf if foreseen is None else foreseen)
        self._advice.set(len(observation.advice))


class RelayMetrics:
    """The metrics of `karmalake relay`."""

    def __init__(self) -> None:
        self.book = book = Book()
        self.loops = LoopMetrics(book)
        self._rows = book.counter(
            "karmalake_relay_rows_total", "Rows of the outbox that the brokers acknowledged and that are deleted."
        )
        self._bytes = book.counter("karmalake_relay_bytes_total", "Bytes of the keys and values of those rows.")
        self._batches = book.seconds(
            "karmalake_relay_batch_duration_seconds", "Of a batch of rows: lock, send, acknowledge, delete."
        )
        self._backlog = book.gauge("karmalake_outbox_backlog_rows", "Committed rows that wait in the outbox.")
        self._oldest = book.gauge(
            "karmalake_outbox_oldest_age_seconds", "Age of the oldest row in the outbox; 0 if there is none."
        )

    def relayed(self, done: "Relayed") -> None:
        """Count a batch."""
        self._rows.inc(done.rows)
        self._bytes.inc(done.bytes)
        self._batches.observe(done.seconds)

    def waiting(self, backlog: "Backlog") -> None:
        """Show what waits in the outbox."""
        self._backlog.set(backlog.rows)
        self._oldest.set(backlog.oldest_age_seconds)


class NotifyMetrics:
    """The metrics of `karmalake notify`."""

    def __init__(self) -> None:
        self.book = book = Book()
        self.loops = LoopMetrics(book)
        self._delivered = book.counter(
            "karmalake_notify_deliveries_total", "Notifications that a destination has taken.", "destination"
        )
        self._dead_letters = book.counter(
            "karmalake_notify_dead_letters_total", "Notifications that a destination refused for good.", "destination"
        )
        self._malformed = book.counter(
            "karmalake_notify_malformed_records_total", "Records that are no events, passed over.", "destination"
        )
        self._lost = book.counter(
            "karmalake_notify_lost_records_total",
            "Offsets that the topic no longer held when a destination was to read them.",
            "destination",
        )
        place = ("destination", "topic_partition")
        self._behind = book.gauge(
            "karmalake_notify_lag_records", "Records above what a destination's group has committed.", *place
        )
        self._behind_seconds = book.gauge(
            "karmalake_notify_lag_seconds",
            "Age on the bus of the oldest record above what is committed; NaN if no record there has a valid time.",
            *place,
        )

    def notified(self, destination: str, done: "Tally") -> None:
        """Count what a destination did since its last report."""
        self._delivered.labels(destination).inc(done.delivered)
        self._dead_letters.labels(destination).inc(done.dead_letters)
        self._malformed.labels(destination).inc(done.malformed)
        self._lost.labels(destination).inc(sum(loss.lost for loss in done.losses))

    def behind(self, destination: str, lags: "tuple[Lag, ...]") -> None:
        """Show how far a destination is behind."""
        for lag in lags:
            self._behind.labels(destination, str(lag.topic_partition)).set(lag.lag_records)
            self._behind_seconds.labels(destination, str(lag.topic_partition)).set(_known(lag.lag_seconds))


def _known(seconds: float | None) -> float:
    return math.nan if seconds is None else seconds


PROCESSES = {"stream": StreamMetrics, "relay": RelayMetrics, "notify": NotifyMetrics}
"""By command."""
