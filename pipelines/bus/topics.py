"""The topic of events: created from the settings, described as the broker reports it.

An existing topic is never changed; differences from the settings are reported.
"""

import contextlib
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any
from uuid import UUID

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    AuthorizationError,
    KafkaTimeoutError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    UnsupportedVersionError,
    for_code,
)
from kafka.structs import TopicPartition

from pipelines.bus.clients import admin_client, consumer, translate_errors
from pipelines.errors import ConfigurationError
from pipelines.settings import KafkaSettings

_HOUR_MS = 3_600_000
_WEEK_MS = 7 * 24 * _HOUR_MS
_POLL_MS = 10
_NO_ID = str(UUID(int=0))


@dataclass(frozen=True, slots=True)
class TopicPartitionState:
    """One topic partition: it holds the offsets [begin_offset, end_offset)."""

    partition: int
    begin_offset: int
    end_offset: int
    leader: int


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the broker reports it."""

    topic_id: str
    name: str
    partitions: tuple[TopicPartitionState, ...]
    """Ordered by partition number."""
    replication_factor: int
    configs: dict[str, str]
    """The topic's configuration; empty if the broker does not reveal it."""
    differences: tuple[str, ...]
    """Differences from the settings, one sentence each."""

    @property
    def retention_hours(self) -> float | None:
        """Retention in hours; -1 is unlimited, None if the broker does not reveal it."""
        milliseconds = self.configs.get("retention.ms")
        if milliseconds is None:
            return None
        return -1.0 if int(milliseconds) < 0 else int(milliseconds) / _HOUR_MS


def ensure_topic(kafka: KafkaSettings) -> Topic:
    """Create the topic of `kafka` if it does not exist, and return it. Idempotent.

    Raises ConfigurationError if the broker refuses it, TransientError if the broker does not answer.
    """
    retention_ms = -1 if kafka.retention_hours < 0 else kafka.retention_hours * _HOUR_MS
    return _ensure(kafka, {"cleanup.policy": "delete", "retention.ms": str(retention_ms)})


def ensure_compacted_topic(kafka: KafkaSettings) -> Topic:
    """Create a topic that retains the newest record of each key, without a limit of time, like `ensure_topic`.

    It retains all records for a week, like a topic of events.
    """
    return _ensure(kafka, {"cleanup.policy": "compact", "min.compaction.lag.ms": str(_WEEK_MS)})


def compaction_problem(topic: Topic) -> str | None:
    """Return why a topic does not retain the newest record of each key; None if it does, or the broker does not say.

    An existing topic may have been created by a broker with its defaults, for a consumer that came first.
    """
    policy = topic.configs.get("cleanup.policy", "compact")
    if policy == "compact":
        return None
    return (
        f"cleanup.policy of {topic.name} is {policy}: retention removes the newest records of users, and the others of "
        "erased users stay until then; set it to compact, and min.compaction.lag.ms to 604800000"
    )


def _ensure(kafka: KafkaSettings, configs: dict[str, str]) -> Topic:
    config = {
        "num_partitions": kafka.partitions,
        "replication_factor": kafka.replication_factor,
        "configs": configs,
    }
    with translate_errors(kafka, f"creating the topic {kafka.topic}"), admin_client(kafka) as admin:
        if _metadata(admin, kafka.topic) is None:
            with contextlib.suppress(TopicAlreadyExistsError):  # created concurrently
                admin.create_topics({kafka.topic: config})
            admin.wait_for_topics([kafka.topic])
    topic = describe_topic(kafka)
    if topic is None:
        raise ConfigurationError(f"the topic {kafka.topic} was created and then deleted: which client deletes it?")
    return topic


def describe_topic(kafka: KafkaSettings) -> Topic | None:
    """Return the topic of `kafka` with its offsets, or None if it does not exist.

    Raises TransientError if the broker does not answer, ConfigurationError if it has no topic ids (before Kafka 2.8).
    """
    with translate_errors(kafka, f"describing the topic {kafka.topic}"), admin_client(kafka) as admin:
        metadata = _metadata(admin, kafka.topic)
        if metadata is None:
            return None
        topic_id = topic_id_of(kafka, metadata)
        configs = _configs(admin, kafka.topic)
        partitions = _partitions(kafka, metadata)
    replication_factor = min((len(partition["replica_nodes"]) for partition in metadata["partitions"]), default=0)
    topic = Topic(topic_id, kafka.topic, partitions, replication_factor, configs, ())
    return replace(topic, differences=_differences(kafka, topic))


def topic_id_of(kafka: KafkaSettings, metadata: dict[str, Any]) -> str:
    """Return the topic id in a broker's metadata response; checkpoints belong to the id, not to the name.

    Raises ConfigurationError if there is none: a recreated topic would be indistinguishable from the old one.
    """
    topic_id = str(metadata.get("topic_id") or _NO_ID)
    if topic_id == _NO_ID:
        raise ConfigurationError(
            f"the broker at {kafka.bootstrap_servers} has no topic ids: use Kafka 2.8 or newer, or a "
            "Kafka-compatible service that supports topic ids"
        )
    return topic_id


def topic_exists(kafka: KafkaSettings) -> bool:
    """Return whether the topic of `kafka` exists; cheaper than `describe_topic`."""
    with translate_errors(kafka, f"looking for the topic {kafka.topic}"), admin_client(kafka) as admin:
        return _metadata(admin, kafka.topic) is not None


def _metadata(admin: Any, name: str) -> dict[str, Any] | None:
    [topic] = admin.describe_topics([name])
    error = for_code(topic["error_code"])
    if error is UnknownTopicOrPartitionError:
        return None
    if topic["error_code"]:
        raise error(f"the broker's response about {name}")
    return topic


def _configs(admin: Any, name: str) -> dict[str, str]:
    try:
        answer = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    except (AuthorizationError, UnsupportedVersionError):
        return {}
    return {key: entry["value"] for key, entry in answer["topic"][name].items() if entry["value"] is not None}


def _partitions(kafka: KafkaSettings, metadata: dict[str, Any]) -> tuple[TopicPartitionState, ...]:
    leaders = {partition["partition_index"]: partition["leader_id"] for partition in metadata["partitions"]}
    places = [TopicPartition(kafka.topic, partition) for partition in sorted(leaders)]
    with consumer(kafka, fetch_max_wait_ms=_POLL_MS, max_poll_records=1) as client:
        begins = client.beginning_offsets(places)
        ends = _end_offsets(client, places, kafka)
    return tuple(
        TopicPartitionState(place.partition, begins[place], ends[place], leaders[place.partition]) for place in places
    )


def _end_offsets(client: Any, places: list[TopicPartition], kafka: KafkaSettings) -> dict[TopicPartition, int]:
    """Return the end offset of each topic partition.

    ListOffsets only says where to fetch: the embedded broker returns the second record of the last batch. The high
    watermark in a fetch response is right on every broker.
    """
    client.assign(places)
    for place, offset in client.end_offsets(places).items():
        client.seek(place, offset)
    deadline = monotonic() + kafka.request_timeout_seconds
    missing = places
    while missing and monotonic() < deadline:
        client.poll(timeout_ms=_POLL_MS)
        missing = [place for place in places if client.highwater(place) is None]
    if missing:
        raise KafkaTimeoutError(f"no end offset for the topic partitions {[place.partition for place in missing]}")
    return {place: client.highwater(place) for place in places}


def _differences(kafka: KafkaSettings, topic: Topic) -> tuple[str, ...]:
    hours = kafka.retention_hours if topic.retention_hours is None else topic.retention_hours
    pairs = {
        "partitions": (len(topic.partitions), kafka.partitions),
        "replication_factor": (topic.replication_factor, kafka.replication_factor),
        "retention_hours": (hours, kafka.retention_hours),
    }
    return tuple(
        f"{name} is {found:g}, the settings say {wanted}" for name, (found, wanted) in pairs.items() if found != wanted
    )
