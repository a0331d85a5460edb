"""The topic of events, against the embedded broker and Apache Kafka."""

import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaProducer
from pydantic import SecretStr

from pipelines.bus.clients import consumer, producer
from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import KafkaSettings, Settings
from tests.services.kafka_cluster import KafkaCluster, Listener


def test_ensure_topic_follows_the_settings_and_is_idempotent(bus: KafkaSettings) -> None:
    """A new topic has the partitions, replicas and retention of the settings; ensuring again changes nothing."""
    assert describe_topic(bus) is None
    topic = ensure_topic(bus)
    assert uuid.UUID(topic.topic_id)
    assert [state.partition for state in topic.partitions] == [0, 1, 2, 3]
    assert {(state.begin_offset, state.end_offset) for state in topic.partitions} == {(0, 0)}
    assert (topic.replication_factor, topic.retention_hours, topic.differences) == (1, 168, ())
    assert ensure_topic(bus) == topic == describe_topic(bus)


def test_end_offsets_count_whole_batches(bus: KafkaSettings) -> None:
    """The end offset is the last offset + 1, although the embedded broker's ListOffsets says less."""
    before = ensure_topic(bus)
    producer = KafkaProducer(**bus.client_config(), linger_ms=100)
    for number in range(1000):
        producer.send(bus.topic, key=b"k", value=b"%d" % number, partition=1)
    producer.close()
    topic = describe_topic(bus)
    assert topic is not None
    assert [state.end_offset for state in topic.partitions] == [0, 1000, 0, 0]
    assert topic == replace(before, partitions=topic.partitions)


def test_an_existing_topic_is_not_changed(bus: KafkaSettings) -> None:
    """Different settings do not change an existing topic; the differences are reported."""
    created = ensure_topic(bus)
    other = bus.model_copy(update={"partitions": 6, "retention_hours": -1})
    topic = ensure_topic(other)
    assert topic.partitions == created.partitions
    assert topic.differences == (
        "partitions is 4, the settings say 6",
        "retention_hours is 168, the settings say -1",
    )


def test_unlimited_retention(bus: KafkaSettings) -> None:
    """Retention -1 arrives at the broker as -1."""
    topic = ensure_topic(bus.model_copy(update={"retention_hours": -1}))
    assert topic.retention_hours == -1
    assert topic.differences == ()


def test_no_broker_is_a_transient_error_that_names_the_address() -> None:
    """An unreachable broker is reported at once, with its address."""
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1.*check that the broker runs"):
        describe_topic(nowhere)


def test_an_invalid_address_is_a_configuration_error() -> None:
    """A typing mistake in the address is named as such."""
    with pytest.raises(ConfigurationError, match="'localhost:kafka', which is not host:port"):
        describe_topic(KafkaSettings(bootstrap_servers="localhost:kafka"))


def test_a_missing_certificate_is_named() -> None:
    """The setting and the path are in the message."""
    settings = KafkaSettings(
        bootstrap_servers="127.0.0.1:1", security_protocol="SSL", ssl_cafile=Path("/nowhere/ca.pem")
    )
    with pytest.raises(ConfigurationError, match=r"kafka\.ssl_cafile names /nowhere/ca\.pem"):
        describe_topic(settings)


@pytest.mark.jvm
@pytest.mark.usefixtures("broken_connections")
@pytest.mark.parametrize(
    ("listener", "change"),
    [
        ("SASL_SSL", {"sasl_password": SecretStr("not the password")}),
        ("SSL", {"ssl_cafile": None}),
        ("SSL", {"security_protocol": "PLAINTEXT", "ssl_cafile": None, "ssl_certfile": None, "ssl_keyfile": None}),
    ],
)
def test_failed_authentication(kafka: KafkaCluster, listener: Listener, change: dict) -> None:
    """A wrong password, CA or protocol fails in time, says what to check, and reveals no secret."""
    settings = kafka.settings(listener, **({"request_timeout_seconds": 2} | change))
    with pytest.raises(TransientError, match="the certificates and the credentials") as caught:
        describe_topic(settings)
    assert "not the password" not in str(caught.value)


def test_no_client_creates_topics(settings: Settings) -> None:
    """A topic that was deleted must not come back with the defaults of the broker because it is asked for."""
    with consumer(settings.kafka) as reader, closing(producer(settings.kafka)) as writer:
        assert [client.config["allow_auto_create_topics"] for client in (reader, writer)] == [False, False]
