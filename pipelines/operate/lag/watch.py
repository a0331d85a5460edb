"""Observe lag: measure it, hold it against the measurements before, keep it.

Owns one observation, and the count of what a `stream` did between two. Who observes every some seconds is
`monitor.py`.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from pipelines.lake.commit import CommitRecord
from pipelines.operate.lag.advice import advise
from pipelines.operate.lag.history import keep, recent
from pipelines.operate.lag.measure import Measurement, Pace, Work, measure_lag, paces
from pipelines.reputation.derive import Derived
from pipelines.serving.publish import Published
from pipelines.settings import Settings

_COMPARED = timedelta(minutes=10)
"""How far back the measurements go that advice is taken from."""
_APART = timedelta(seconds=5)
"""Of two measurements that lie closer, a single commit makes the pace."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A measurement, and what follows from it together with those of the ten minutes before."""

    measurement: Measurement
    paces: dict[int, Pace]
    """By topic partition, since the newest measurement that lies five seconds back, or else the oldest there is."""
    catch_up_seconds: float | None
    """Until nothing lies behind anywhere; 0 if nothing does, None if that cannot be foreseen."""
    advice: tuple[str, ...]
    """What to do, a sentence each, the most urgent first."""


def observe_lag(settings: Settings, work: Work | None = None) -> Observation:
    """Measure the lag now, compare it with what history has, and append it there.

    `work` is what the caller did since it observed last, if the caller is a `stream`. Raises like `measure_lag`.
    """
    measurement = replace(measure_lag(settings), work=work)
    before = recent(settings.lag_dir, measurement.topic_id, measurement.measured_at - _COMPARED)
    keep(settings.lag_dir, measurement, settings.lag.keep_days)
    pace = paces(_earlier(before, measurement), measurement) if before else {}
    advice = advise([*before, measurement], settings.ingest)
    return Observation(measurement, pace, _catch_up(measurement, pace), tuple(advice))


def _earlier(before: Sequence[Measurement], measurement: Measurement) -> Measurement:
    """Return the newest measurement that lies far enough back, or else the oldest."""
    apart = [one for one in before if measurement.measured_at - one.measured_at >= _APART]
    return apart[-1] if apart else before[0]


def _catch_up(measurement: Measurement, pace: dict[int, Pace]) -> float | None:
    """Return when the topic partition is current that takes the longest."""
    longest = 0.0
    for lag in measurement.partitions:
        if not lag.lag_records:
            continue
        one = pace.get(lag.topic_partition)
        if one is None or one.catch_up_seconds is None:
            return None
        longest = max(longest, one.catch_up_seconds)
    return longest


class WorkLog:
    """What a `stream` does, counted by the threads that do it until it is taken."""

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

    def refreshed(self, derived: Derived, published: Published) -> None:
        """Add a refresh."""
        with self._lock:
            derive_seconds = self._work.derive_seconds + derived.seconds
            publish_seconds = self._work.publish_seconds + published.seconds
            self._work = replace(self._work, derive_seconds=derive_seconds, publish_seconds=publish_seconds)

    def take(self) -> Work:
        """Return what was added since the last time."""
        with self._lock:
            work, self._work = self._work, Work()
        return work
