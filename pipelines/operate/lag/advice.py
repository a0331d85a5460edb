"""What measurements of lag advise to do: pure, from numbers to sentences.

Owns the thresholds. Each advice names the numbers that warrant it and what to change; without lag there is none about
ingest. How lag is measured is `lag.py`.
"""

from collections.abc import Iterator, Sequence

from pipelines.operate.lag.measure import Lag, Measurement, Pace, Work, paces
from pipelines.settings import IngestSettings

_BEHIND_SECONDS = 10.0
"""A topic partition that waits less than this is current: a batch and a commit take their time."""
_HOT_SHARE = 0.8
"""Of all that lies behind, in one topic partition."""
_FULL_SHARE = 0.9
"""Of `ingest.max_batch_records`: a commit as large as that is full, for batches are cut where the bus cuts them."""
_SLOW_PUBLISH_SECONDS = 1.0
_RETENTION_SHARE = 0.5
_HOUR_SECONDS = 3_600.0


def advise(measurements: Sequence[Measurement], ingest: IngestSettings) -> list[str]:
    """Return what to do, a sentence each, the most urgent first; nothing if all is well.

    `measurements` are of one topic, the oldest first. What takes two of them is judged by the first and the last, the
    work of `stream` by its newest.
    """
    if not measurements:
        return []
    last = measurements[-1]
    pace = paces(measurements[0], last)
    work = next((one.work for one in reversed(measurements) if one.work), Work())
    ingesting = _capacity(last, pace, work, ingest) or _hot(last, pace)
    return [*_retention(measurements[0], last), *filter(None, [ingesting, _redis(work)])]


def _retention(first: Measurement, last: Measurement) -> Iterator[str]:
    """Warn of records that the broker deletes before they are read (`nothing-lost`)."""
    hours = last.retention_hours
    before = {lag.topic_partition: lag for lag in first.partitions}
    for lag in last.partitions:
        place = f"{last.topic}-{lag.topic_partition}"
        if lag.next_offset is not None and lag.next_offset < lag.begin_offset:
            lost = lag.begin_offset - lag.next_offset
            yield (
                f"{place}: retention removed {lost:,} records that were never read: look for another copy of them, "
                "then `karmalake drain --accept-loss`"
            )
        elif (
            hours is not None
            and hours >= 0
            and (age := lag.lag_seconds or 0) > _RETENTION_SHARE * hours * _HOUR_SECONDS
        ):
            yield (
                f"{place}: the oldest unread record is {age / _HOUR_SECONDS:.1f} h old and the topic keeps "
                f"records for {hours:g} h: start ingest, or raise the topic's retention.ms, before records are lost"
            )
        elif (seconds := _overtaken_in(before.get(lag.topic_partition), lag, first, last)) is not None:
            yield (
                f"{place}: the start of the log reaches the checkpoint in {seconds / 60:.0f} minutes at this pace: "
                "start ingest, or raise the topic's retention.bytes, before records are lost"
            )


def _overtaken_in(before: Lag | None, after: Lag, first: Measurement, last: Measurement) -> float | None:
    """Return when the log's start passes the checkpoint, if that is within an hour and something lies behind."""
    seconds = (last.measured_at - first.measured_at).total_seconds()
    if (
        before is None
        or before.next_offset is None
        or after.next_offset is None
        or seconds <= 0
        or not after.lag_records
    ):
        return None
    nearer = (after.begin_offset - before.begin_offset) - (after.next_offset - before.next_offset)
    if nearer <= 0:
        return None
    left = (after.next_offset - after.begin_offset) / (nearer / seconds)
    return left if left < _HOUR_SECONDS else None


def _capacity(last: Measurement, pace: dict[int, Pace], work: Work, ingest: IngestSettings) -> str | None:
    """Ask for larger commits, if they are full, else for more hands, where all is behind and nothing is gained."""
    came, went = (sum(getattr(one, name) for one in pace.values()) for name in ("in_per_second", "out_per_second"))
    used = [lag for lag in last.partitions if lag.end_offset > lag.begin_offset]
    if not pace or not used or went >= came or not all(map(_is_behind, used)):
        return None
    rates = f"{came:,.0f} records a second come in and {went:,.0f} go out"
    if went == 0:
        return f"{rates}: start ingest with `karmalake stream`, or see why it stands still"
    if work.largest_commit_records >= _FULL_SHARE * ingest.max_batch_records:
        return (
            f"{rates}, and commits are full with {work.largest_commit_records:,} records: "
            "raise ingest.max_batch_records and ingest.max_batch_bytes, if memory allows"
        )
    return (
        f"{rates}, and every topic partition is behind: one process is at its limit; divide the topic partitions "
        f"among more of them, and add topic partitions if {len(last.partitions)} are too few to divide"
    )


def _hot(last: Measurement, pace: dict[int, Pace]) -> str | None:
    """Name the one topic partition that is behind while the others are current: a hot user, or a slow leader."""
    behind = [lag for lag in last.partitions if _is_behind(lag)]
    if len(behind) != 1 or len(last.partitions) == 1 or behind[0].lag_records < _HOT_SHARE * last.lag_records:
        return None
    number = behind[0].topic_partition
    place = f"{last.topic}-{number} is {behind[0].lag_records:,} records behind while the others are current"
    came = sum(one.in_per_second for one in pace.values())
    share = pace[number].in_per_second / came if came and number in pace else 0.0
    if share > 2 / len(last.partitions):
        return (
            f"{place}, and {share:.0%} of all records come in there: one user sends most of them, or a few do; count "
            f"the events of topic_partition {number} by user_id with `karmalake sql` to see who"
        )
    return f"{place}, though no more comes in there than elsewhere: see whether the broker that leads it is slow"


def _redis(work: Work) -> str | None:
    """Speak of Redis where publishing takes longer than computing what is published."""
    if work.publish_seconds < _SLOW_PUBLISH_SECONDS or work.publish_seconds <= work.derive_seconds:
        return None
    return (
        f"publishing took {work.publish_seconds:.1f} s of the {work.publish_seconds + work.derive_seconds:.1f} s of "
        "refreshing: Redis is slow, or far; look at `redis-cli --latency` and SLOWLOG, or bring it nearer"
    )


def _is_behind(lag: Lag) -> bool:
    return lag.lag_records > 0 and (lag.lag_seconds is None or lag.lag_seconds > _BEHIND_SECONDS)
