"""Apache Kafka behaves as later tests assume: codecs, transactions, retention, TLS, SASL and faults."""

import contextlib
import socket
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import TopicPartition
from pydantic import SecretStr

from pipelines.settings import KafkaSettings
from tests.services.kafka_cluster import KafkaCluster, Listener
from tests.services.requirements import require
from tests.services.waiting import wait_for

pytestmark = pytest.mark.jvm

CODECS = (None, "gzip", "snappy", "lz4", "zstd")
WRONG_PASSWORD = "wrong"  # noqa: S105 # opens nothing


# kafka-python's published stubs are years older than it: clients are typed Any.
@contextlib.contextmanager
def _producer(settings: KafkaSettings, **options: Any) -> Generator[Any]:
    factory: Any = KafkaProducer
    with contextlib.closing(factory(**settings.client_config(), **options)) as client:
        yield client


@contextlib.contextmanager
def _consumer(settings: KafkaSettings, topic: str, **options: Any) -> Generator[Any]:
    factory: Any = KafkaConsumer
    with contextlib.closing(factory(**settings.client_config(), **options)) as client:
        client.assign([TopicPartition(topic, 0)])
        client.seek_to_beginning()
        yield client


def _send(settings: KafkaSettings, topic: str, *values: bytes, **options: Any) -> None:
    with _producer(settings, **options) as producer:
        for sent in [producer.send(topic, value, partition=0) for value in values]:
            sent.get(30)


def _read(settings: KafkaSettings, topic: str, count: int, **options: Any) -> list[bytes]:
    """Read until `count` records have come."""
    values: list[bytes] = []

    def enough() -> bool:
        for records in consumer.poll(timeout_ms=200).values():
            values.extend(record.value for record in records)
        return len(values) >= count

    with _consumer(settings, topic, **options) as consumer:
        wait_for(f"{count} records of {topic}", enough)
    return values


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_goes_through_the_broker(kafka: KafkaCluster, codec: str | None) -> None:
    """The broker validates what kafka-python compresses, and kafka-python reads it back."""
    topic = kafka.new_topic()
    values = [f"{codec} {number} ".encode() * 20 for number in range(200)]
    _send(kafka.settings(), topic, *values, compression_type=codec, linger_ms=50)
    assert _read(kafka.settings(), topic, len(values)) == values


@pytest.mark.parametrize("codec", CODECS[1:])
def test_every_codec_of_the_broker_can_be_read(kafka: KafkaCluster, codec: str) -> None:
    """A topic that the broker compresses (with Java's encoders) is readable."""
    topic = kafka.new_topic(compression_type=codec)
    values = [f"{codec} {number} ".encode() * 20 for number in range(200)]
    _send(kafka.settings(), topic, *values, linger_ms=50)
    assert _read(kafka.settings(), topic, len(values)) == values


def test_an_aborted_transaction_is_hidden_and_its_markers_take_offsets(kafka: KafkaCluster) -> None:
    """read_committed returns only the committed record; markers have offsets, also at the end of the log."""
    topic = kafka.new_topic()
    with _producer(kafka.settings(), transactional_id=f"tx-{uuid.uuid4()}") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, b"aborted", partition=0)
        producer.flush()
        producer.abort_transaction()
        producer.begin_transaction()
        producer.send(topic, b"committed", partition=0)
        producer.commit_transaction()
    assert _read(kafka.settings(), topic, 1, isolation_level="read_committed") == [b"committed"]
    assert _read(kafka.settings(), topic, 2) == [b"aborted", b"committed"]
    with _consumer(kafka.settings(), topic) as consumer:
        place = TopicPartition(topic, 0)
        assert consumer.end_offsets([place]) == {place: 4}


def test_deleted_records_move_the_beginning(kafka: KafkaCluster) -> None:
    """After delete_records the log begins at the first remaining record."""
    topic = kafka.new_topic()
    _send(kafka.settings(), topic, *[b"%d" % number for number in range(10)])
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 7})
    assert _beginning(kafka, topic) == 7
    assert _read(kafka.settings(), topic, 3) == [b"7", b"8", b"9"]


def test_retention_moves_the_beginning(kafka: KafkaCluster) -> None:
    """A topic with a retention of a millisecond and short segments loses its records within seconds."""
    topic = kafka.new_topic(retention_ms="1", segment_ms="100")
    _send(kafka.settings(), topic, b"first")
    wait_for("retention to pass the first record", lambda: _beginning(kafka, topic) == 1)


def _beginning(kafka: KafkaCluster, topic: str) -> int:
    place = TopicPartition(topic, 0)
    with _consumer(kafka.settings(), topic) as consumer:
        return consumer.beginning_offsets([place])[place]


def test_a_recreated_topic_has_another_id(kafka: KafkaCluster) -> None:
    """Deleting a topic and creating it again under the same name gives a new topic id and new offsets."""
    topic = kafka.new_topic()
    _send(kafka.settings(), topic, b"old")
    with kafka.admin() as admin:
        [before] = admin.describe_topics([topic])
        admin.delete_topics([topic])
        wait_for("the topic to go", lambda: topic not in admin.list_topics())
        kafka.create_topic(topic)
        [after] = admin.describe_topics([topic])
    assert before["topic_id"] != after["topic_id"]
    _send(kafka.settings(), topic, b"new")
    assert _read(kafka.settings(), topic, 1) == [b"new"]


def test_an_unknown_topic_is_not_created(kafka: KafkaCluster) -> None:
    """Reading a topic does not create it: a misspelled name must not look like an empty topic."""
    with _consumer(kafka.settings(), "no-such-topic") as consumer:
        assert not consumer.partitions_for_topic("no-such-topic")
    with kafka.admin() as admin:
        assert "no-such-topic" not in admin.list_topics()


@pytest.mark.parametrize(
    ("listener", "changes"),
    [
        ("SSL", {}),
        ("SASL_SSL", {"sasl_mechanism": "PLAIN"}),
        ("SASL_SSL", {"sasl_mechanism": "SCRAM-SHA-256"}),
        ("SASL_SSL", {"sasl_mechanism": "SCRAM-SHA-512"}),
    ],
)
def test_secured_listeners_serve_the_settings(kafka: KafkaCluster, listener: Listener, changes: dict[str, str]) -> None:
    """A client built from KafkaSettings writes and reads over TLS, by certificate and by every SASL mechanism."""
    topic = kafka.new_topic()
    settings = kafka.settings(listener, **changes)
    _send(settings, topic, b"sealed")
    assert _read(settings, topic, 1) == [b"sealed"]


@pytest.mark.usefixtures("broken_connections")
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")  # another kind of broken connection
@pytest.mark.parametrize(
    ("listener", "changes"),
    [
        ("SASL_SSL", {"sasl_password": SecretStr(WRONG_PASSWORD)}),
        ("SSL", {"ssl_certfile": None, "ssl_keyfile": None}),
        ("SSL", {"ssl_cafile": None}),
    ],
)
def test_secured_listeners_refuse(kafka: KafkaCluster, listener: Listener, changes: dict[str, Any]) -> None:
    """Connections with a wrong password, no client certificate or an unknown authority fail."""
    settings = kafka.settings(listener, **changes)
    with pytest.raises(KafkaError), _producer(settings, bootstrap_timeout_ms=1000):
        pass


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Generator[KafkaCluster]:
    """Return a broker for tests that stop it, each of which leaves it running."""
    require("kafka")
    with KafkaCluster(tmp_path_factory.mktemp("own"), proxied=True) as own:
        yield own


@pytest.mark.usefixtures("broken_connections")
def test_a_killed_broker_keeps_its_data_and_port(own: KafkaCluster) -> None:
    """After SIGKILL the port is closed; after a restart the broker has the records and the topic id."""
    topic = own.new_topic()
    _send(own.settings(), topic, b"kept")
    own.kill(0)
    host, port = own.bootstrap_servers.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    own.start(0)
    assert _read(own.settings(), topic, 1) == [b"kept"]


@pytest.mark.usefixtures("broken_connections")
def test_three_brokers_survive_the_loss_of_one(tmp_path: Path) -> None:
    """With one of three brokers killed, a write that all in-sync replicas have (acks=all) succeeds; nothing is lost."""
    require("kafka")
    with KafkaCluster(tmp_path, brokers=3) as cluster:
        topic = cluster.new_topic()
        _send(cluster.settings(), topic, b"three", acks="all")
        cluster.kill(0)
        _send(cluster.settings(), topic, b"two", acks="all")
        cluster.start(0)
        assert _read(cluster.settings(), topic, 2) == [b"three", b"two"]


@pytest.mark.usefixtures("broken_connections")
def test_a_paused_broker_answers_late(own: KafkaCluster) -> None:
    """A suspended broker keeps its connections open without responding; resumed, it responds."""
    topic = own.new_topic()
    with _producer(own.settings()) as producer:
        producer.send(topic, b"before", partition=0).get(30)
        own.pause(0)
        late = producer.send(topic, b"late", partition=0)
        with pytest.raises(KafkaTimeoutError):
            late.get(1)
        own.resume(0)
        assert late.get(30).offset == 1


@pytest.mark.usefixtures("broken_connections")
def test_a_client_behind_a_proxy_survives_a_cut(own: KafkaCluster) -> None:
    """Clients of the listener PROXIED connect through its proxy only: cut, they wait; healed, they continue."""
    topic = own.new_topic()
    with _producer(own.settings("PROXIED")) as producer:
        producer.send(topic, b"before", partition=0).get(30)
        own.proxies[0].cut()
        late = producer.send(topic, b"late", partition=0)
        with pytest.raises(KafkaTimeoutError):
            late.get(1)
        own.proxies[0].heal()
        late.get(30)
    assert _read(own.settings(), topic, 2) == [b"before", b"late"]
