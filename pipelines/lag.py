"""Consumer lag: how far the lake is behind the bus, by topic partition."""

from dataclasses import dataclass

from pipelines.emit.topics import describe_topic
from pipelines.errors import UsageError
from pipelines.lake.tables import checkpoint_id, create_lake
from pipelines.settings import Settings


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
    lag_records: int


def measure_lag(settings: Settings) -> list[Lag]:
    """Return the lag of every topic partition. Raises UsageError when the topic does not exist."""
    topic = describe_topic(settings.kafka)
    if topic is None:
        raise UsageError(f"topic {settings.kafka.topic} does not exist: create it with `karmalake topics ensure`")
    events = create_lake(settings.lake_dir).table("events")
    lags: list[Lag] = []
    for place in topic.partitions:
        next_offset = events.transaction_version(checkpoint_id(topic.topic_id, place.partition))
        read_upto = place.begin_offset if next_offset is None else next_offset
        lag_records = max(0, place.end_offset - read_upto)
        lags.append(Lag(place.partition, place.begin_offset, place.end_offset, next_offset, lag_records))
    return lags
