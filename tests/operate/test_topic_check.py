"""The topic check reports risks of losing events before they occur."""

from contextlib import closing

import pytest

from pipelines.bus.clients import admin_client
from pipelines.bus.topics import Topic, TopicPartitionState, compaction_problem, ensure_compacted_topic, ensure_topic
from pipelines.errors import UsageError
from pipelines.feed_relay import open_feed_topic
from pipelines.lake.tables import create_lake
from pipelines.operate.topic_check import check_topic, check_topics, judge_configs
from pipelines.settings import FeedSettings, Settings
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import wait_for
from tests.test_feed import opened, record

_SOUND = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * 86_400_000),
    "retention.bytes": "-1",
    "unclean.leader.election.enable": "false",
    "min.insync.replicas": "2",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": "3600000",
}
_UNLIMITED_MS = str(2**63 - 1)


def _findings(replicas: int = 3, **changes: str) -> list[str]:
    configs = _SOUND | {name.replace("_", "."): value for name, value in changes.items()}
    partitions = (TopicPartitionState(0, 0, 0, 1),)
    findings = judge_configs(Topic("id", "events", partitions, replicas, configs, ()))
    return [f"{finding.severity}: {finding.message}" for finding in findings]


def test_a_sound_topic_has_no_findings() -> None:
    """Three replicas, two in sync, retention of a week, or unlimited; record times that a broker bounds or sets."""
    assert _findings() == _findings(retention_ms="-1") == []
    assert _findings(message_timestamp_type="LogAppendTime", message_timestamp_after_max_ms=_UNLIMITED_MS) == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"cleanup_policy": "compact"}, "loses data: cleanup.policy compacts"),
        ({"cleanup_policy": "compact,delete"}, "loses data: cleanup.policy compacts"),
        ({"retention_ms": "3600000"}, "loses data: records are kept for 1 h"),
        ({"retention_bytes": "1000"}, "loses data: retention.bytes is 1000"),
        ({"unclean_leader_election_enable": "true"}, "loses data: unclean.leader.election.enable"),
        ({"min_insync_replicas": "1"}, "loses data: min.insync.replicas is 1"),
        ({"min_insync_replicas": "3"}, "note: min.insync.replicas is 3 of 3"),
        ({"message_timestamp_after_max_ms": _UNLIMITED_MS}, "note: record times are the producers'"),
    ],
)
def test_each_risk_is_reported(changes: dict[str, str], finding: str) -> None:
    """One finding per risk."""
    (found,) = _findings(**changes)
    assert found.startswith(finding)


def test_too_few_replicas() -> None:
    """A single replica is one finding, without another about min.insync.replicas."""
    (found,) = _findings(replicas=1, min_insync_replicas="1")
    assert found.startswith("loses data: the replication factor is 1")


def test_a_missing_topic(settings: Settings) -> None:
    """The message says how to create it."""
    with pytest.raises(UsageError, match="topics ensure"):
        check_topic(settings)


@pytest.mark.jvm
def test_a_topic_with_added_partitions(kafka: KafkaCluster, settings: Settings) -> None:
    """On Apache Kafka, with its real configuration, partitions that the lake has not read are noted."""
    bus = with_ingest(settings.model_copy(update={"kafka": kafka.settings(topic=settings.kafka.topic, partitions=2)}))
    ensure_topic(bus.kafka)
    send(bus, valid_records(range(50)))
    drain_all(bus)
    assert [finding.severity for finding in check_topic(bus)] == ["loses data"]  # one replica
    with admin_client(bus.kafka) as admin:
        admin.create_partitions({bus.kafka.topic: 3})
    grown = wait_for("the new topic partition", lambda: check_topic(bus)[1:])
    assert "it has 3 partitions, and the lake has read 2" in grown[0].message


@pytest.mark.jvm
def test_a_topic_of_the_feed_that_a_consumer_created(
    kafka: KafkaCluster, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Brokers create it with their defaults for a consumer that comes first, so retention removes changes."""
    feed = FeedSettings(enabled=True, topic=kafka.new_topic(cleanup_policy="delete"))
    bus = kafka.settings(topic=settings.kafka.topic, partitions=1)
    fed = settings.model_copy(update={"kafka": bus, "feed": feed})
    ensure_topic(bus)
    create_lake(fed.lake_root)
    with opened(fed) as recorded:
        record(recorded, 1, ann=1)
    with closing(open_feed_topic(fed)) as relayed:
        relayed.relay_pending(lambda _: None)
    found = check_topics(fed)[feed.topic]
    assert [finding.severity for finding in found] == ["loses data"] * 2  # the other is its one replica
    assert found[0].message.startswith(f"cleanup.policy of {feed.topic} is delete")
    assert found[0].message in caplog.text
    assert (
        compaction_problem(ensure_compacted_topic(fed.kafka.model_copy(update={"topic": f"{feed.topic}-new"}))) is None
    )
