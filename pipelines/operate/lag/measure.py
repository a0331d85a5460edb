"""Consumer lag by topic partition, in records and in time, of the lake or of a consumer group; or that of a queue.

Owns one measurement, and the pace between two. `history.py` stores measurements, `advice.py` draws conclusions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, NamedTuple

from deltalake.exceptions import DeltaError
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition

from pipelines.boundary.text import amount
from pipelines.bus.clients import admin_client, consumer, translate_errors
from pipelines.bus.topics import TopicPartitionState, describe_topic
from pipelines.contract.times import bus_times
from pipelines.errors import TransientError, UsageError
from pipelines.ingest.queue import QUEUE_ID, open_queue
from pipelines.ingest.sources import explain_missing_topic, require_topics
from pipelines.lake.checkpoints import checkpoint
from pipelines.lake.tables import Lake, is_lake
from pipelines.settings import KafkaSettings, Settings

_POLL_MS = 100
_LOOKAHEAD_SECONDS = 1.0
"""How long to look beyond records without a valid time for one that has it."""
_MAX_CLOCK_SKEW = timedelta(hours=1)
_FETCH_BYTES = 16 * 1024
"""Fetch size of a topic partition, to learn the time of one record; a larger record is still returned."""


@dataclass(frozen=True, slots=True)
class Lag:
    """The lag of one topic partition: the log holds [begin_offset, end_offset), the lake has read up to next_offset.

    `lag_records` counts offsets, control records included. The embedded broker understates end_offset by up to one
    producer's batch. A queue is topic partition 0, whose offsets number its messages: it holds what is after the lake's
    checkpoint.
    """

    topic_partition: int
    begin_offset: int
    end_offset: int
    next_offset: int | None
    """None before the first commit: reading begins at begin_offset."""
    lag_records: int
    lag_seconds: float | None
    """Age of the first unread record by bus time; 0 if there is none, None if neither it nor the records right after it
    have a valid time. Of a queue an estimate (`observe.py`)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a `karmalake stream` did since its previous measurement."""

    commits: int = 0
    records: int = 0
    """Read by those commits."""
    largest_commit_records: int = 0
    derive_seconds: float = 0.0
    publish_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """The lag of every topic partition of one topic, or of one queue, at one time."""

    measured_at: datetime
    topic: str
    topic_id: str
    retention_hours: float | None
    """-1 retains records indefinitely; None if the broker does not report it."""
    partitions: tuple[Lag, ...]
    """In partition order."""
    work: Work | None = None
    """The work of the measuring process; None if it is not a `stream`."""

    @property
    def lag_records(self) -> int:
        """The total lag of all topic partitions."""
        return sum(partition.lag_records for partition in self.partitions)

    @property
    def lag_seconds(self) -> float | None:
        """The largest lag in time; None if no topic partition with lag has a known one."""
        known = [partition.lag_seconds for partition in self.partitions if partition.lag_seconds is not None]
        longest = max(known, default=0.0)
        return longest if longest or len(known) == len(self.partitions) else None

    @property
    def is_queue(self) -> bool:
        """Whether it is of a queue."""
        return self.topic_id.startswith(QUEUE_ID)

    @property
    def unknown_time(self) -> str:
        """Why the lag in time is unknown, where it is."""
        return "no earlier measurement tells it" if self.is_queue else "records without a valid time"

    @property
    def summary(self) -> str:
        """The lag in words, as part of a sentence."""
        seconds = self.lag_seconds
        time = f"an unknown time ({self.unknown_time})" if seconds is None else f"{seconds:,.1f} s"
        return f"{amount(self.lag_records, 'record')} and {time}"


@dataclass(frozen=True, slots=True)
class Pace:
    """The rates of a topic partition between two measurements."""

    topic_partition: int
    in_per_second: float
    """Offsets per second that the log grew by."""
    out_per_second: float
    """Offsets per second that the lake's checkpoint moved by."""
    catch_up_seconds: float | None
    """Time until the lag is 0 at this pace; 0 if it is, None if the lag does not shrink."""


def measure_lag(settings: Settings, name: str | None = None) -> Measurement:
    """Return the current lag of every topic partition of a topic; None is the topic of our own contract.

    Without a lake, nothing is read yet.
    Raises UsageError if the topic does not exist, or ingest reads a queue; TransientError if the brokers do not answer
    or the lake cannot be read.
    """
    require_topics(settings, "the lag of a topic")
    kafka = settings.kafka if name is None else settings.kafka.model_copy(update={"topic": name})
    topic = describe_topic(kafka)
    if topic is None:
        raise UsageError(explain_missing_topic(settings, kafka.topic))
    checkpoints = _checkpoints(settings, topic.topic_id, [state.partition for state in topic.partitions])
    places = [_Partition(state, at) for state, at in zip(topic.partitions, checkpoints, strict=True)]
    now, lags = _lags(kafka, places)
    return Measurement(now, topic.name, topic.topic_id, topic.retention_hours, lags)


def measure_queue(settings: Settings) -> Measurement:
    """Return how many messages wait in the queue that is ingested; for how long they have, a queue does not tell.

    Raises like `open_queue`, and TransientError if the lake cannot be read.
    """
    with open_queue(settings) as queue:
        waiting = sum(queue.client.backlog())
    [next_offset] = _checkpoints(settings, queue.topic_id, [0])
    begin = next_offset or 0
    lag = Lag(0, begin, begin + waiting, next_offset, waiting, None if waiting else 0.0)
    return Measurement(datetime.now(UTC), queue.client.name, queue.topic_id, None, (lag,))


def summarize(measurements: Sequence[Measurement]) -> str:
    """Return the lag of topics in words, as part of a sentence."""
    if len(measurements) == 1:
        return measurements[0].summary
    return "; ".join(f"{measured.topic}: {measured.summary}" for measured in measurements)


def longest_lag_seconds(measurements: Sequence[Measurement]) -> float | None:
    """Return the largest lag of topics in time; None if that of one of them is unknown."""
    seconds = [measured.lag_seconds for measured in measurements]
    return None if None in seconds else max((each for each in seconds if each is not None), default=0.0)


def _checkpoints(settings: Settings, topic_id: str, partitions: Sequence[int]) -> list[int | None]:
    try:
        if not is_lake(settings.lake_root):
            return [None] * len(partitions)
        events = Lake(settings.lake_root).table("events")
        return [checkpoint(events, topic_id, partition) for partition in partitions]
    except (DeltaError, OSError) as error:
        raise TransientError(f"the checkpoints in {settings.lake_root} cannot be read: {error}; try again") from error


def measure_group(kafka: KafkaSettings, group_id: str) -> tuple[Lag, ...]:
    """Return the lag of a consumer group whose committed offsets are its checkpoints, such as a notifier's.

    Omits topic partitions for which the group has committed no offset. Raises like `measure_lag`.
    """
    topic = describe_topic(kafka)
    if topic is None:
        raise UsageError(f"topic {kafka.topic} does not exist: create it with `karmalake topics ensure`")
    with translate_errors(kafka, f"reading the offsets of {group_id}"), admin_client(kafka) as admin:
        committed = admin.list_group_offsets({group_id: None})[group_id]
    known = {place.partition: at.offset for place, at in committed.items() if place.topic == kafka.topic}
    places = [_Partition(state, known[state.partition]) for state in topic.partitions if state.partition in known]
    return _lags(kafka, places)[1]


class _Partition(NamedTuple):
    state: TopicPartitionState
    next_offset: int | None

    @property
    def read_upto(self) -> int:
        return self.state.begin_offset if self.next_offset is None else self.next_offset

    @property
    def lag_records(self) -> int:
        return max(0, self.state.end_offset - self.read_upto)


def _lags(kafka: KafkaSettings, places: Sequence[_Partition]) -> tuple[datetime, tuple[Lag, ...]]:
    times = first_bus_times(kafka, {place.state.partition: place.read_upto for place in places if place.lag_records})
    now = datetime.now(UTC)
    return now, tuple(_lag(place, times.get(place.state.partition, now), now) for place in places)


def _lag(place: _Partition, oldest: datetime | None, now: datetime) -> Lag:
    return Lag(
        topic_partition=place.state.partition,
        begin_offset=place.state.begin_offset,
        end_offset=place.state.end_offset,
        next_offset=place.next_offset,
        lag_records=place.lag_records,
        lag_seconds=None if oldest is None else max(0.0, (now - oldest).total_seconds()),
    )


def first_bus_times(kafka: KafkaSettings, offsets: dict[int, int]) -> dict[int, datetime | None]:
    """Return the bus time of the first record at or above an offset, by topic partition.

    If that record has no time, or one in the future, the next valid time that is found soon counts; None if there is
    none. Omits topic partitions with only control records above the offset. Raises TransientError if the brokers do not
    answer.
    """
    if not offsets:
        return {}
    doing = f"looking for the oldest unread records of {kafka.topic}"
    options = {"max_partition_fetch_bytes": _FETCH_BYTES, "auto_offset_reset": "earliest"}
    with translate_errors(kafka, doing), consumer(kafka, **options) as reader:
        places = [TopicPartition(kafka.topic, partition) for partition in offsets]
        reader.assign(places)
        for place in places:
            reader.seek(place, offsets[place.partition])
        return _poll_first_times(reader, places, kafka.request_timeout_seconds)


def _poll_first_times(
    reader: Any, places: Sequence[TopicPartition], timeout_seconds: float
) -> dict[int, datetime | None]:
    found: dict[int, datetime | None] = {}
    missing, started = list(places), monotonic()
    while missing:
        unanswered = [place.partition for place in missing if place.partition not in found]
        if monotonic() - started > (timeout_seconds if unanswered else _LOOKAHEAD_SECONDS):
            break
        for place, records in reader.poll(_POLL_MS).items():
            found[place.partition] = found.get(place.partition) or _first_valid(
                [record.timestamp for record in records]
            )
        missing = [place for place in missing if not found.get(place.partition) and not _reached_end(reader, place)]
        reader.pause(*(place for place in places if place not in missing))
    unanswered = [place.partition for place in missing if place.partition not in found]
    if unanswered:
        raise KafkaTimeoutError(f"no answer for the topic partitions {unanswered}")
    return found


def _first_valid(milliseconds: Sequence[int]) -> datetime | None:
    """Return the first valid record time that is at most `_MAX_CLOCK_SKEW` in the future; None if there is none."""
    latest = datetime.now(UTC) + _MAX_CLOCK_SKEW
    return next((time for time in bus_times(milliseconds).drop_null().to_pylist() if time <= latest), None)


def _reached_end(reader: Any, place: TopicPartition) -> bool:
    """Return whether the reader has reached the end of the log: it skips control records silently."""
    end = reader.highwater(place)
    return end is not None and reader.position(place) >= end


def paces(earlier: Measurement, later: Measurement) -> dict[int, Pace]:
    """Return the pace of each topic partition in both measurements; empty if they are of different topics."""
    seconds = (later.measured_at - earlier.measured_at).total_seconds()
    if seconds <= 0 or earlier.topic_id != later.topic_id:
        return {}
    before = {partition.topic_partition: partition for partition in earlier.partitions}
    known = [partition for partition in later.partitions if partition.topic_partition in before]
    return {
        partition.topic_partition: _pace(before[partition.topic_partition], partition, seconds) for partition in known
    }


def _pace(before: Lag, after: Lag, seconds: float) -> Pace:
    incoming = max(0, after.end_offset - before.end_offset) / seconds
    outgoing = max(0, _position(after) - _position(before)) / seconds
    return Pace(after.topic_partition, incoming, outgoing, catch_up_seconds(after.lag_records, incoming, outgoing))


def catch_up_seconds(lag_records: int, in_per_second: float, out_per_second: float) -> float | None:
    """Return the seconds until the lag is 0; None if it does not shrink."""
    if lag_records == 0:
        return 0.0
    gained = out_per_second - in_per_second
    return lag_records / gained if gained > 0 else None


def _position(lag: Lag) -> int:
    return lag.begin_offset if lag.next_offset is None else lag.next_offset
