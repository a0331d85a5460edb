"""Builders of synthetic measurements."""

from datetime import UTC, datetime, timedelta

from pipelines.operate.lag.measure import Lag, Measurement, Work

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def partition(number: int, end: int, at: int | None, *, seconds: float = 0.0, begin: int = 0) -> Lag:
    """Return the lag of a topic partition whose log ends at `end` and of which the lake has read up to `at`."""
    return Lag(number, begin, end, at, max(0, end - (begin if at is None else at)), seconds)


def measurement(
    *partitions: Lag,
    after: float = 0.0,
    retention_hours: float | None = 168.0,
    work: Work | None = None,
    topic_id: str = "id",
    start: datetime = START,
) -> Measurement:
    """Return a measurement taken `after` so many seconds."""
    return Measurement(start + timedelta(seconds=after), "events", topic_id, retention_hours, partitions, work)
