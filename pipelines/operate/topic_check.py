"""Checks of a topic: configuration or growth that may lose events or mislead a consumer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deltalake import DeltaTable

from pipelines.boundary.text import amount
from pipelines.bus.topics import Topic, compaction_problem, describe_topic
from pipelines.errors import UsageError
from pipelines.ingest.sources import explain_missing_topic, topic_sources
from pipelines.lake.checkpoints import checkpoint
from pipelines.lake.tables import is_lake, open_lake
from pipelines.settings import Settings

_MIN_RETENTION_HOURS = 72
_MIN_REPLICAS = 3
_MIN_INSYNC_REPLICAS = 2
_MAX_CLOCK_LEAD_MS = 3_600_000
"""Kafka's default from 4.0 on; before, it was unlimited."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding about a topic, with what to do: `loses data` under a foreseeable failure, or a `note`."""

    severity: Literal["loses data", "note"]
    message: str


def check_topics(settings: Settings) -> dict[str, list[Finding]]:
    """Return the findings about each topic that is ingested, and that of the feed, by name.

    Raises like `check_topic`.
    """
    found = {name: check_topic(settings, name) for name in topic_sources(settings)}
    if settings.relays_feed and (
        feed := describe_topic(settings.kafka.model_copy(update={"topic": settings.feed.topic}))
    ):
        found[feed.name] = list(judge_feed(feed))
    return found


def check_topic(settings: Settings, name: str | None = None) -> list[Finding]:
    """Return the findings about a topic; None is that of our own contract. Empty if it is sound.

    Raises UsageError if the topic does not exist, TransientError if the brokers do not answer.
    """
    kafka = settings.kafka if name is None else settings.kafka.model_copy(update={"topic": name})
    topic = describe_topic(kafka)
    if topic is None:
        raise UsageError(explain_missing_topic(settings, kafka.topic))
    events = open_lake(settings.lake_root).table("events") if is_lake(settings.lake_root) else None
    return [*judge_configs(topic), *(_judge_growth(topic, events) if events else ())]


def judge_configs(topic: Topic) -> Iterator[Finding]:
    """Yield the findings about the configuration of a topic; values that the broker does not report are not judged."""
    configs = topic.configs
    if "compact" in configs.get("cleanup.policy", ""):
        yield Finding(
            "loses data",
            "cleanup.policy compacts: only the newest record of each key would remain; set it to delete",
        )
    if topic.retention_hours is not None and 0 <= topic.retention_hours < _MIN_RETENTION_HOURS:
        yield Finding(
            "loses data",
            f"records are kept for {topic.retention_hours:g} h: if ingest is down over a weekend, events are lost; "
            f"set retention.ms to {_MIN_RETENTION_HOURS} h or more",
        )
    if int(configs.get("retention.bytes", -1)) >= 0:
        yield Finding(
            "loses data",
            f"retention.bytes is {configs['retention.bytes']}: a burst may delete unread records; set it to -1",
        )
    if configs.get("unclean.leader.election.enable") == "true":
        yield Finding("loses data", "unclean.leader.election.enable lets a lagging replica lead; set it to false")
    lead_ms = int(configs.get("message.timestamp.after.max.ms", 0))
    if configs.get("message.timestamp.type") == "CreateTime" and lead_ms > _MAX_CLOCK_LEAD_MS:
        yield Finding(
            "note",
            "record times are the producers' (message.timestamp.type is CreateTime), and the brokers accept a lead of "
            f"{lead_ms} ms: retention keeps such records for as much longer, and only the clock of ingest bounds their "
            f"event times; set message.timestamp.after.max.ms to {_MAX_CLOCK_LEAD_MS}, or the type to LogAppendTime",
        )
    yield from _judge_replicas(topic.replication_factor, int(configs.get("min.insync.replicas", 1)))


def judge_feed(topic: Topic) -> Iterator[Finding]:
    """Yield the findings about the topic of the feed, of which consumers expect the newest change of each user."""
    if problem := compaction_problem(topic):
        yield Finding("loses data", problem)
    yield from _judge_replicas(topic.replication_factor, int(topic.configs.get("min.insync.replicas", 1)))


def _judge_replicas(replicas: int, in_sync: int) -> Iterator[Finding]:
    if replicas < _MIN_REPLICAS:
        yield Finding("loses data", f"the replication factor is {replicas}: losing one broker loses records; use 3")
    elif in_sync < _MIN_INSYNC_REPLICAS:
        yield Finding("loses data", "min.insync.replicas is 1: a single broker may acknowledge a record; set it to 2")
    elif in_sync >= replicas:
        yield Finding(
            "note", f"min.insync.replicas is {in_sync} of {replicas}: no broker may ever be down; lower it by one"
        )


def _judge_growth(topic: Topic, events: DeltaTable) -> Iterator[Finding]:
    """Yield a note if the topic has partitions that the lake has not read: keys may have moved to them."""
    numbers = [partition.partition for partition in topic.partitions]
    read = [n for n in numbers if checkpoint(events, topic.topic_id, n) is not None]
    if read and len(read) < len(numbers):
        yield Finding(
            "note",
            f"it has {amount(len(numbers), 'partition')}, and the lake has read {len(read)}: if partitions were added, "
            "a user's events are in two of them. Scores depend on event time and are not affected; a consumer that "
            "relies on arrival order, such as notifications, may see a user's events out of order around the change",
        )
