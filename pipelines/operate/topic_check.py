"""What about a topic may lose events or mislead a branch: judged from its configuration and from what the lake read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deltalake import DeltaTable

from pipelines.bus.topics import Topic, describe_topic
from pipelines.errors import UsageError
from pipelines.lake.tables import checkpoint_id
from pipelines.settings import Settings

_WEEKEND_HOURS = 72
_SAFE_REPLICAS = 3
_SAFE_INSYNC = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a topic, and what to do: `loses data` under a failure that is to be expected, or `note`."""

    severity: Literal["loses data", "note"]
    sentence: str


def check_topic(settings: Settings) -> list[Finding]:
    """Return what is to be said about the topic of events; nothing if all is well.

    Raises UsageError when there is no such topic, TransientError when the brokers do not answer.
    """
    topic = describe_topic(settings.kafka)
    if topic is None:
        raise UsageError(f"topic {settings.kafka.topic} does not exist: create it with `karmalake topics ensure`")
    events = f"{settings.lake_root}/events"
    lake = DeltaTable(events) if DeltaTable.is_deltatable(events) else None
    return [*judge_configs(topic), *(_growth(topic, lake) if lake else ())]


def judge_configs(topic: Topic) -> Iterator[Finding]:
    """Yield what the configuration of a topic brings with it; what a broker does not say is not judged."""
    configs = topic.configs
    if "compact" in configs.get("cleanup.policy", ""):
        yield Finding(
            "loses data",
            "cleanup.policy compacts: of each user only the newest event would be kept; set it to delete",
        )
    if topic.retention_hours is not None and 0 <= topic.retention_hours < _WEEKEND_HOURS:
        yield Finding(
            "loses data",
            f"records are kept for {topic.retention_hours:g} h: ingest that stands still over a weekend loses events; "
            f"set retention.ms to {_WEEKEND_HOURS} h or more",
        )
    if int(configs.get("retention.bytes", -1)) >= 0:
        yield Finding(
            "loses data",
            f"retention.bytes is {configs['retention.bytes']}: a burst pushes out what nobody has read; set it to -1",
        )
    if configs.get("unclean.leader.election.enable") == "true":
        yield Finding("loses data", "unclean.leader.election.enable lets a broker that lags lead; set it to false")
    yield from _judge_replicas(topic.replication_factor, int(configs.get("min.insync.replicas", 1)))


def _judge_replicas(replicas: int, insync: int) -> Iterator[Finding]:
    if replicas < _SAFE_REPLICAS:
        yield Finding(
            "loses data", f"the replication factor is {replicas}: a broker that burns takes records along; use 3"
        )
    elif insync < _SAFE_INSYNC:
        yield Finding("loses data", "min.insync.replicas is 1: one broker alone may acknowledge a record; set it to 2")
    elif insync >= replicas:
        yield Finding(
            "note", f"min.insync.replicas is {insync} of {replicas}: no broker may ever be away; use one less"
        )


def _growth(topic: Topic, lake: DeltaTable) -> Iterator[Finding]:
    """Yield a note when the topic has more partitions than the lake knows: keys went elsewhere from then on."""
    numbers = [partition.partition for partition in topic.partitions]
    read = [n for n in numbers if lake.transaction_version(checkpoint_id(topic.topic_id, n)) is not None]
    if read and len(read) < len(numbers):
        yield Finding(
            "note",
            f"it has {len(numbers)} partitions, and the lake has read {len(read)}: if it grew, a user's events are in "
            "two of them. Scores go by event time and do not mind; a branch that relies on the order of arrival, such "
            "as notifications, may see a user's events in another order around the change",
        )
