"""The topic of events: created as the settings say, and described as the broker has it.

An existing topic is never changed: how it differs from the settings is reported.
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

from pipelines.bus.clients import admin_client, consumer, translated
from pipelines.errors import ConfigurationError
from pipelines.settings import KafkaSettings

_HOUR_MS = 3_600_000
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
    """A topic as the broker has it now."""

    topic_id: str
    name: str
    partitions: tuple[TopicPartitionState, ...]
    """In order of their number."""
    replication_factor: int
    configs: dict[str, str]
    """The topic's configuration as the broker has it; empty if it does not say."""
    differences: tuple[str, ...]
    """How it is not what the settings would create, one sentence each."""

    @property
    def retention_hours(self) -> float | None:
        """How long records are kept; -1 is forever, None if the broker does not say."""
        milliseconds = self.configs.get("retention.ms")
        if milliseconds is None:
            return None
        return -1.0 if int(milliseconds) < 0 else int(milliseconds) / _HOUR_MS


def ensure_topic(kafka: KafkaSettings) -> Topic:
    """Create the topic of `kafka` if there is none, and return it. Safe to repeat.

    Raises ConfigurationError if the broker refuses it, TransientError if the broker does not answer.
    """
    retention_ms = -1 if kafka.retention_hours < 0 else kafka.retention_hours * _HOUR_MS
    wanted = {
        "num_partitions": kafka.partitions,
        "replication_factor": kafka.replication_factor,
        "configs": {"cleanup.policy": "delete", "retention.ms": str(retention_ms)},
    }
    with translated(kafka, f"creating the topic {kafka.topic}"), admin_client(kafka) as admin:
        if _metadata(admin, kafka.topic) is None:
            with contextlib.suppress(TopicAlreadyExistsError):  # somebody else was quicker
                admin.create_topics({kafka.topic: wanted})
            admin.wait_for_topics([kafka.topic])
    topic = describe_topic(kafka)
    if topic is None:
        raise ConfigurationError(f"the topic {kafka.topic} was created and is gone again: is somebody deleting it?")
    return topic


def describe_topic(kafka: KafkaSettings) -> Topic | None:
    """Return the topic of `kafka` with its offsets, None if there is none.

    Raises TransientError if the broker does not answer, ConfigurationError if it knows no topic ids (before 2.8).
    """
    with translated(kafka, f"describing the topic {kafka.topic}"), admin_client(kafka) as admin:
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
    """Return the id of a topic by a broker's answer about it: its checkpoints belong to that, not to a name.

    Raises ConfigurationError where there is none: a topic that was created again could not be told from the old one.
    """
    topic_id = str(metadata.get("topic_id") or _NO_ID)
    if topic_id == _NO_ID:
        raise ConfigurationError(
            f"the broker at {kafka.bootstrap_servers} has no topic ids: Kafka 2.8 is the oldest that works, and of a "
            "service that speaks Kafka's protocol one that knows them"
        )
    return topic_id


def topic_exists(kafka: KafkaSettings) -> bool:
    """Tell whether the broker has the topic of `kafka`; cheaper than to describe it."""
    with translated(kafka, f"looking for the topic {kafka.topic}"), admin_client(kafka) as admin:
        return _metadata(admin, kafka.topic) is not None


def _metadata(admin: Any, name: str) -> dict[str, Any] | None:
    [topic] = admin.describe_topics([name])
    error = for_code(topic["error_code"])
    if error is UnknownTopicOrPartitionError:
        return None
    if topic["error_code"]:
        raise error(f"the broker's answer about {name}")
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
    """Return the next offset of each place.

    The answer of ListOffsets is where to look, not the end: the embedded broker names the second record of the
    last batch. The high watermark that comes with a fetch is right everywhere.
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
