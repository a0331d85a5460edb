"""Lag observation: measure the lag, compare it with recent measurements, and append it to the history.

Owns one observation, and the work of a `stream` between two. `monitoring/monitor.py` observes periodically.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from pipelines.ingest.sources import topic_sources
from pipelines.lake.commit import CommitRecord
from pipelines.operate.lag.advice import advise
from pipelines.operate.lag.history import append, recent
from pipelines.operate.lag.measure import Measurement, Pace, Work, measure_lag, paces
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


def observe_lag(settings: Settings, work: Work | None = None, topic: str | None = None) -> Observation:
    """Measure the lag of a topic, compare it with the history, and append it there; None is that of our own contract.

    `work` is what a `stream` did since its last observation. Raises like `measure_lag` and `history.append`.
    """
    measurement = replace(measure_lag(settings, topic), work=work)
    previous = recent(settings.lag_dir, measurement.topic_id, measurement.measured_at - _ADVICE_WINDOW)
    append(settings.lag_dir, measurement, settings.lag.keep_days)
    pace = paces(_baseline(previous, measurement), measurement) if previous else {}
    advice = advise([*previous, measurement], settings.ingest)
    return Observation(measurement, pace, _catch_up(measurement, pace), tuple(advice))


def observe_lags(settings: Settings, work: Work | None = None) -> tuple[Observation, ...]:
    """Observe the lag of every topic that is ingested. Raises like `observe_lag`."""
    return tuple(observe_lag(settings, work, topic) for topic in topic_sources(settings))


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
