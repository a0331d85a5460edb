"""Consumer lag: how far the lake, or another reader, is behind the bus, by topic partition, in records and in time.

Owns one measurement, and what two of them say of the pace. Where measurements are kept is `history.py`, what
follows from them `advice.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, NamedTuple

from deltalake.exceptions import DeltaError
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition

from pipelines.bus.clients import admin_client, consumer, translated
from pipelines.bus.topics import Topic, TopicPartitionState, describe_topic
from pipelines.contract.times import bus_times
from pipelines.errors import TransientError, UsageError
from pipelines.lake.tables import checkpoint_id, create_lake
from pipelines.settings import KafkaSettings, Settings

_POLL_MS = 100
_LOOK_ON_SECONDS = 1.0
"""How long is looked on from records without a valid time for one that has it."""
_CLOCKS_DIFFER = timedelta(hours=1)
_FETCH_BYTES = 16 * 1024
"""Of a topic partition, to learn the time of one record; a larger record is still read."""


@dataclass(frozen=True, slots=True)
class Lag:
    """One topic partition: records in the log are [begin_offset, end_offset), those below next_offset are in the lake.

    `lag_records` counts offsets, control records included. The embedded broker understates end_offset by up to one
    producer's batch.
    """

    topic_partition: int
    begin_offset: int
    end_offset: int
    next_offset: int | None
    """None before the first commit: reading begins at begin_offset."""
    lag_records: int
    lag_seconds: float | None
    """Since the bus time of the first record that is not in the lake; 0 if there is none, None if it has no valid time
    and those behind it in the log have none either."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a `karmalake stream` did since its measurement before."""

    commits: int = 0
    records: int = 0
    """Read by those commits."""
    largest_commit_records: int = 0
    derive_seconds: float = 0.0
    publish_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """The lag of every topic partition at one time."""

    measured_at: datetime
    topic: str
    topic_id: str
    retention_hours: float | None
    """-1 keeps records forever; None if the broker does not say."""
    partitions: tuple[Lag, ...]
    """In order of their number."""
    work: Work | None = None
    """Of the process that measured; None if it was not a `stream`."""

    @property
    def lag_records(self) -> int:
        """The lag of all topic partitions together."""
        return sum(partition.lag_records for partition in self.partitions)

    @property
    def lag_seconds(self) -> float | None:
        """The lag of the topic partition that is furthest behind in time; None if of those behind none is known."""
        known = [partition.lag_seconds for partition in self.partitions if partition.lag_seconds is not None]
        longest = max(known, default=0.0)
        return longest if longest or len(known) == len(self.partitions) else None

    @property
    def behind(self) -> str:
        """How far that is, as part of a sentence."""
        seconds = self.lag_seconds
        time = "an unknown time (records without a valid time)" if seconds is None else f"{seconds:,.1f} s"
        return f"{self.lag_records:,} records and {time}"


@dataclass(frozen=True, slots=True)
class Pace:
    """What happened to a topic partition between two measurements."""

    topic_partition: int
    in_per_second: float
    """Offsets that the log grew by."""
    out_per_second: float
    """Offsets that the lake's checkpoint moved by."""
    catch_up_seconds: float | None
    """Until nothing lies behind, at this pace; 0 if nothing does, None if that day never comes."""


def measure_lag(settings: Settings) -> Measurement:
    """Return the lag of every topic partition now.

    Raises UsageError when the topic does not exist, TransientError when the brokers do not answer or the lake cannot
    be read.
    """
    topic = _described(settings.kafka)
    places = [_Place(state, at) for state, at in zip(topic.partitions, _checkpoints(settings, topic), strict=True)]
    now, lags = _lags(settings.kafka, places)
    return Measurement(now, topic.name, topic.topic_id, topic.retention_hours, lags)


def _checkpoints(settings: Settings, topic: Topic) -> list[int | None]:
    try:
        events = create_lake(settings.lake_root).table("events")
        return [
            events.transaction_version(checkpoint_id(topic.topic_id, state.partition)) for state in topic.partitions
        ]
    except (DeltaError, OSError) as error:
        raise TransientError(f"the checkpoints in {settings.lake_root} cannot be read: {error}; try again") from error


def measure_group(kafka: KafkaSettings, group_id: str) -> tuple[Lag, ...]:
    """Return the lag of a consumer group whose offsets are its checkpoints, such as a notifier's.

    A topic partition for which the group has committed nothing yet is left out. Raises like `measure_lag`.
    """
    topic = _described(kafka)
    with translated(kafka, f"reading the offsets of {group_id}"), admin_client(kafka) as admin:
        committed = admin.list_group_offsets({group_id: None})[group_id]
    known = {place.partition: at.offset for place, at in committed.items() if place.topic == kafka.topic}
    places = [_Place(state, known[state.partition]) for state in topic.partitions if state.partition in known]
    return _lags(kafka, places)[1]


def _described(kafka: KafkaSettings) -> Topic:
    topic = describe_topic(kafka)
    if topic is None:
        raise UsageError(f"topic {kafka.topic} does not exist: create it with `karmalake topics ensure`")
    return topic


class _Place(NamedTuple):
    state: TopicPartitionState
    next_offset: int | None

    @property
    def read_upto(self) -> int:
        return self.state.begin_offset if self.next_offset is None else self.next_offset

    @property
    def lag_records(self) -> int:
        return max(0, self.state.end_offset - self.read_upto)


def _lags(kafka: KafkaSettings, places: Sequence[_Place]) -> tuple[datetime, tuple[Lag, ...]]:
    times = first_bus_times(kafka, {place.state.partition: place.read_upto for place in places if place.lag_records})
    now = datetime.now(UTC)
    return now, tuple(_lag(place, times.get(place.state.partition, now), now) for place in places)


def _lag(place: _Place, oldest: datetime | None, now: datetime) -> Lag:
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

    Of a record whose time is none, or lies ahead, it is that of the next one that is soon found, or None. Where only
    control records lie behind the offset there is no time: such a topic partition is left out. Raises TransientError
    when the brokers do not answer.
    """
    if not offsets:
        return {}
    doing = f"looking for the oldest unread records of {kafka.topic}"
    options = {"max_partition_fetch_bytes": _FETCH_BYTES, "auto_offset_reset": "earliest"}
    with translated(kafka, doing), consumer(kafka, **options) as reader:
        places = [TopicPartition(kafka.topic, partition) for partition in offsets]
        reader.assign(places)
        for place in places:
            reader.seek(place, offsets[place.partition])
        return _first_times(reader, places, kafka.request_timeout_seconds)


def _first_times(reader: Any, places: Sequence[TopicPartition], timeout_seconds: float) -> dict[int, datetime | None]:
    found: dict[int, datetime | None] = {}
    missing, started = list(places), monotonic()
    while missing:
        unanswered = [place.partition for place in missing if place.partition not in found]
        if monotonic() - started > (timeout_seconds if unanswered else _LOOK_ON_SECONDS):
            break
        for place, records in reader.poll(_POLL_MS).items():
            found[place.partition] = found.get(place.partition) or _first_valid(
                [record.timestamp for record in records]
            )
        missing = [place for place in missing if not found.get(place.partition) and not _at_its_end(reader, place)]
        reader.pause(*(place for place in places if place not in missing))
    unanswered = [place.partition for place in missing if place.partition not in found]
    if unanswered:
        raise KafkaTimeoutError(f"no answer for the topic partitions {unanswered}")
    return found


def _first_valid(milliseconds: Sequence[int]) -> datetime | None:
    """Return the first of the times of records that is one, and that is not ahead of us by more than clocks differ."""
    latest = datetime.now(UTC) + _CLOCKS_DIFFER
    return next((time for time in bus_times(milliseconds).drop_null().to_pylist() if time <= latest), None)


def _at_its_end(reader: Any, place: TopicPartition) -> bool:
    """Tell whether everything was fetched and none of it was a record: control records are passed silently."""
    end = reader.highwater(place)
    return end is not None and reader.position(place) >= end


def paces(earlier: Measurement, later: Measurement) -> dict[int, Pace]:
    """Return the pace of each topic partition that both measurements know; none if they are of different topics."""
    seconds = (later.measured_at - earlier.measured_at).total_seconds()
    if seconds <= 0 or earlier.topic_id != later.topic_id:
        return {}
    before = {partition.topic_partition: partition for partition in earlier.partitions}
    known = [partition for partition in later.partitions if partition.topic_partition in before]
    return {
        partition.topic_partition: _pace(before[partition.topic_partition], partition, seconds) for partition in known
    }


def _pace(before: Lag, after: Lag, seconds: float) -> Pace:
    came = max(0, after.end_offset - before.end_offset) / seconds
    went = max(0, _position(after) - _position(before)) / seconds
    return Pace(after.topic_partition, came, went, catch_up_seconds(after.lag_records, came, went))


def catch_up_seconds(lag_records: int, in_per_second: float, out_per_second: float) -> float | None:
    """Return how long it takes until nothing lies behind; None if as much comes as goes, or more."""
    if lag_records == 0:
        return 0.0
    gained = out_per_second - in_per_second
    return lag_records / gained if gained > 0 else None


def _position(lag: Lag) -> int:
    return lag.begin_offset if lag.next_offset is None else lag.next_offset
