"""Advice from measurements of lag: a pure function from numbers to sentences.

Owns the thresholds. Each sentence names the numbers that justify it and what to change. `measure.py` measures the lag.
"""

from collections.abc import Iterator, Sequence

from pipelines.boundary.text import amount
from pipelines.operate.lag.measure import Lag, Measurement, Pace, Work, paces
from pipelines.settings import IngestSettings

_MIN_LAG_SECONDS = 10.0
"""A topic partition with less lag is current: a batch and a commit take a few seconds."""
_HOT_PARTITION_SHARE = 0.8
"""Share of the total lag in a single topic partition."""
_FULL_COMMIT_SHARE = 0.9
"""Share of `ingest.max_batch_records` above which a commit is full: batches end at record batch boundaries."""
_MIN_SLOW_PUBLISH_SECONDS = 1.0
_RETENTION_SHARE = 0.5
_HOUR_SECONDS = 3_600.0


def advise(measurements: Sequence[Measurement], ingest: IngestSettings) -> list[str]:
    """Return what to do, one sentence each, the most urgent first; empty if nothing is wrong.

    `measurements` are of one topic, the oldest first. Rates come from the first and the last; the work of `stream`
    comes from the newest that has any.
    """
    if not measurements:
        return []
    last = measurements[-1]
    pace = paces(measurements[0], last)
    work = next((each.work for each in reversed(measurements) if each.work), Work())
    ingesting = _at_capacity(last, pace, work, ingest) or _hot_partition(last, pace)
    return [*_retention_risk(measurements[0], last), *filter(None, [ingesting, _slow_redis(work)])]


def _retention_risk(first: Measurement, last: Measurement) -> Iterator[str]:
    """Warn of unread records that the broker has deleted, or is about to (`nothing-lost`)."""
    hours = last.retention_hours
    before = {lag.topic_partition: lag for lag in first.partitions}
    for lag in last.partitions:
        place = f"{last.topic}-{lag.topic_partition}"
        if lag.next_offset is not None and lag.next_offset < lag.begin_offset:
            lost = lag.begin_offset - lag.next_offset
            yield (
                f"{place}: retention removed {amount(lost, 'record that was', 'records that were')} never read: "
                "look for another copy of them, then `karmalake drain --accept-loss`"
            )
        elif (
            hours is not None
            and hours >= 0
            and (age := lag.lag_seconds or 0) > _RETENTION_SHARE * hours * _HOUR_SECONDS
        ):
            yield (
                f"{place}: the oldest unread record is {age / _HOUR_SECONDS:.1f} h old and the topic keeps "
                f"records for {hours:g} h: start ingest or raise the topic's retention.ms before records are lost"
            )
        elif (seconds := _seconds_to_loss(before.get(lag.topic_partition), lag, first, last)) is not None:
            yield (
                f"{place}: the start of the log reaches the checkpoint in {seconds / 60:.0f} minutes at this rate: "
                "start ingest or raise the topic's retention.bytes before records are lost"
            )


def _seconds_to_loss(before: Lag | None, after: Lag, first: Measurement, last: Measurement) -> float | None:
    """Return the seconds until retention reaches the checkpoint, if below an hour and records are unread; else None."""
    seconds = (last.measured_at - first.measured_at).total_seconds()
    if (
        before is None
        or before.next_offset is None
        or after.next_offset is None
        or seconds <= 0
        or not after.lag_records
    ):
        return None
    approach = (after.begin_offset - before.begin_offset) - (after.next_offset - before.next_offset)
    if approach <= 0:
        return None
    left = (after.next_offset - after.begin_offset) / (approach / seconds)
    return left if left < _HOUR_SECONDS else None


def _at_capacity(last: Measurement, pace: dict[int, Pace], work: Work, ingest: IngestSettings) -> str | None:
    """Advise larger commits if they are full, else more processes, if every partition lags and does not catch up."""
    incoming, outgoing = (
        sum(getattr(each, name) for each in pace.values()) for name in ("in_per_second", "out_per_second")
    )
    used = [lag for lag in last.partitions if lag.end_offset > lag.begin_offset]
    if not pace or not used or outgoing >= incoming or not all(map(_is_behind, used)):
        return None
    rates = f"{incoming:,.0f} records/s arrive and {outgoing:,.0f} records/s are ingested"
    if outgoing == 0:
        return f"{rates}: start ingest with `karmalake stream`, or find out why it has stopped"
    if work.largest_commit_records >= _FULL_COMMIT_SHARE * ingest.max_batch_records:
        return (
            f"{rates}, and commits are full with {work.largest_commit_records:,} records: "
            "raise ingest.max_batch_records and ingest.max_batch_bytes, if memory allows"
        )
    if last.is_queue:
        return (
            f"{rates}: one process is at its limit, and a queue has one ingester; have the producers, or a connector, "
            "write to a topic of Kafka, whose topic partitions several processes can share"
        )
    return (
        f"{rates}, and every topic partition is behind: one process is at its limit; share the topic partitions "
        f"among more processes, and add topic partitions if {len(last.partitions)} are too few"
    )


def _hot_partition(last: Measurement, pace: dict[int, Pace]) -> str | None:
    """Name the only topic partition that is behind: it has a hot user, or its leader is slow."""
    behind = [lag for lag in last.partitions if _is_behind(lag)]
    if len(behind) != 1 or len(last.partitions) == 1 or behind[0].lag_records < _HOT_PARTITION_SHARE * last.lag_records:
        return None
    number = behind[0].topic_partition
    place = f"{last.topic}-{number} is {amount(behind[0].lag_records, 'record')} behind while the others are current"
    incoming = sum(each.in_per_second for each in pace.values())
    share = pace[number].in_per_second / incoming if incoming and number in pace else 0.0
    if share > 2 / len(last.partitions):
        return (
            f"{place}, and {share:.0%} of all records arrive there: one user or a few send most of them; count the "
            f"events of topic_partition {number} by user_id with `karmalake sql` to find them"
        )
    return f"{place}, although no more records arrive there than elsewhere: check whether its leader broker is slow"


def _slow_redis(work: Work) -> str | None:
    """Advise on Redis if publishing takes longer than computing the scores."""
    if work.publish_seconds < _MIN_SLOW_PUBLISH_SECONDS or work.publish_seconds <= work.derive_seconds:
        return None
    return (
        f"publishing took {work.publish_seconds:.1f} s of the {work.publish_seconds + work.derive_seconds:.1f} s of "
        "refreshing: Redis is slow or far away; check `redis-cli --latency` and SLOWLOG, or move it closer"
    )


def _is_behind(lag: Lag) -> bool:
    return lag.lag_records > 0 and (lag.lag_seconds is None or lag.lag_seconds > _MIN_LAG_SECONDS)
