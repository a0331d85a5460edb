"""Lag observation: measure the lag, compare it with recent measurements, and append it to the history.

Owns one observation, and the work of a `stream` between two. `monitoring/monitor.py` observes periodically.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from pipelines.ingest.sources import topic_sources
from pipelines.lake.commit import CommitRecord
from pipelines.operate.lag.advice import advise
from pipelines.operate.lag.history import append, recent
from pipelines.operate.lag.measure import Measurement, Pace, Work, measure_lag, measure_queue, paces
from pipelines.reputation.derive import DerivationResult
from pipelines.serving.publish import PublishResult
from pipelines.settings import Settings

_ADVICE_WINDOW = timedelta(minutes=10)
"""Advice is based on the measurements of this period."""
_MIN_INTERVAL = timedelta(seconds=5)
"""Minimum distance of the measurements that a pace is taken from: over less, a single commit dominates it."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A measurement, with what follows from it and those of the ten minutes before."""

    measurement: Measurement
    paces: dict[int, Pace]
    """By topic partition, since the newest measurement that is at least five seconds older, or else the oldest."""
    catch_up_seconds: float | None
    """Time until no topic partition has lag; 0 if none has, None if it cannot be predicted."""
    advice: tuple[str, ...]
    """What to do, one sentence each, the most urgent first."""


def measure_lags(settings: Settings) -> tuple[Measurement, ...]:
    """Return the lag of every topic that is ingested, or of the queue.

    How long a message of a queue waits is estimated from the measurements of ten minutes, as the smaller one of two:
    the time since the queue was last empty, and the number of messages divided by the rate of commits (Little's law:
    J. D. C. Little, "A proof for the queuing formula L = lambda W", Operations Research 9, 1961).

    Raises like `measure_lag` and `measure_queue`.
    """
    return tuple(_measure_each(settings))


def observe_lags(settings: Settings, work: Work | None = None) -> tuple[Observation, ...]:
    """Measure the lag like `measure_lags`, compare it with the history, and append it there.

    `work` is what a `stream` did since its last observation. Raises like `measure_lags` and `history.append`.
    """
    return tuple(_observe(settings, replace(measured, work=work)) for measured in _measure_each(settings))


def _measure_each(settings: Settings) -> Iterator[Measurement]:
    if settings.queue.kind:
        measured = measure_queue(settings)
        yield _with_waiting_time(measured, _previous(settings, measured))
    else:
        for topic in topic_sources(settings):
            yield measure_lag(settings, topic)


def _previous(settings: Settings, measured: Measurement) -> list[Measurement]:
    return recent(settings.lag_dir, measured.topic_id, measured.measured_at - _ADVICE_WINDOW)


def _with_waiting_time(measured: Measurement, previous: Sequence[Measurement]) -> Measurement:
    """Return the measurement of a queue with the time that its messages have waited, if it can be estimated."""
    [lag] = measured.partitions
    if not lag.lag_records or not previous:
        return measured
    empty = [each.measured_at for each in previous if not each.lag_records]
    estimates = [(measured.measured_at - empty[-1]).total_seconds()] if empty else []
    pace = paces(_baseline(previous, measured), measured).get(lag.topic_partition)
    if pace is not None and pace.out_per_second:
        estimates.append(lag.lag_records / pace.out_per_second)
    return replace(measured, partitions=(replace(lag, lag_seconds=min(estimates, default=None)),))


def _observe(settings: Settings, measurement: Measurement) -> Observation:
    previous = _previous(settings, measurement)
    append(settings.lag_dir, measurement, settings.lag.keep_days)
    pace = paces(_baseline(previous, measurement), measurement) if previous else {}
    advice = advise([*previous, measurement], settings.ingest)
    return Observation(measurement, pace, _catch_up(measurement, pace), tuple(advice))


def all_advice(observations: Sequence[Observation]) -> list[str]:
    """Return the advice on all topics; what does not depend on the topic once."""
    return list(dict.fromkeys(advice for observed in observations for advice in observed.advice))


def _baseline(previous: Sequence[Measurement], measurement: Measurement) -> Measurement:
    """Return the newest measurement that is old enough, or else the oldest."""
    old_enough = [each for each in previous if measurement.measured_at - each.measured_at >= _MIN_INTERVAL]
    return old_enough[-1] if old_enough else previous[0]


def _catch_up(measurement: Measurement, pace: dict[int, Pace]) -> float | None:
    """Return the seconds until the slowest topic partition has caught up; None if unknown."""
    longest = 0.0
    for lag in measurement.partitions:
        if not lag.lag_records:
            continue
        partition_pace = pace.get(lag.topic_partition)
        if partition_pace is None or partition_pace.catch_up_seconds is None:
            return None
        longest = max(longest, partition_pace.catch_up_seconds)
    return longest


class WorkLog:
    """A thread-safe counter of the work of a `stream`, reset by `take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work = Work()

    def committed(self, record: CommitRecord) -> None:
        """Add a commit."""
        read = record.total("read")
        with self._lock:
            largest = max(self._work.largest_commit_records, read)
            commits, records = self._work.commits + 1, self._work.records + read
            self._work = replace(self._work, commits=commits, records=records, largest_commit_records=largest)

    def refreshed(self, derived: DerivationResult, published: PublishResult) -> None:
        """Add a refresh."""
        with self._lock:
            derive_seconds = self._work.derive_seconds + derived.seconds
            publish_seconds = self._work.publish_seconds + published.seconds
            self._work = replace(self._work, derive_seconds=derive_seconds, publish_seconds=publish_seconds)

    def take(self) -> Work:
        """Return the work since the last call, and reset it."""
        with self._lock:
            work, self._work = self._work, Work()
        return work
