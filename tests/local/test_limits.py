"""What Apache Kafka supports and the embedded broker does not: each limit is tested strictly, and documented.

If a newer broker supports a feature, its test passes unexpectedly; then remove the limit here and in
docs/operations.md.
"""

import contextlib
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.structs import TopicPartition

from pipelines.bus.topics import ensure_topic
from pipelines.drain import open_ingest
from pipelines.errors import ConfigurationError
from pipelines.lake.tables import create_lake
from pipelines.notify.branch import Reports
from pipelines.notify.rule_file import load_rules
from pipelines.notify.run import notify, plans
from pipelines.serving.client import connect
from pipelines.settings import KafkaSettings, Settings
from tests.conftest import REPOSITORY
from tests.draining import send, valid_records, with_ingest
from tests.notify.notifiers import command, webhook
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS

_RULES = """
[destinations.app]
kind = "redis_stream"
key = "notifications"

[[rules]]
name = "any"
actions = ["Rated"]
text = "rated"
to = ["app"]
"""
Can = Callable[[KafkaSettings], bool]
_SECONDS = 3.0


@contextlib.contextmanager
def _client(kind: Any, kafka: KafkaSettings, **options: Any) -> Any:
    with contextlib.closing(kind(**kafka.client_config(), **options)) as client:
        yield client


def _divide_a_topic_within_a_group(kafka: KafkaSettings) -> bool:
    with _client(KafkaConsumer, kafka, group_id=kafka.group_id, auto_offset_reset="earliest") as member:
        member.subscribe([kafka.topic])
        return sum(map(len, member.poll(4_000).values())) > 0


def _hide_an_aborted_transaction(kafka: KafkaSettings) -> bool:
    with _client(KafkaProducer, kafka, transactional_id=uuid.uuid4().hex) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(kafka.topic, b"aborted").get(_SECONDS)
        producer.abort_transaction()
    options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
    with _client(KafkaConsumer, kafka, **options) as reader:
        reader.assign([TopicPartition(kafka.topic, 0)])
        read = [record.value for records in reader.poll(2_000).values() for record in records]
    return len(read) == 10 and b"aborted" not in read


def _forget_records(kafka: KafkaSettings) -> bool:
    place = TopicPartition(kafka.topic, 0)
    with _client(KafkaAdminClient, kafka) as admin:
        admin.delete_records({place: 5})
    with _client(KafkaConsumer, kafka) as reader:
        return reader.beginning_offsets([place]) == {place: 5}


def _grow_a_topic(kafka: KafkaSettings) -> bool:
    with _client(KafkaAdminClient, kafka) as admin:
        admin.create_partitions({kafka.topic: 2})
        [topic] = admin.describe_topics([kafka.topic])
    return len(topic["partitions"]) == 2


def _know_its_end(kafka: KafkaSettings) -> bool:
    place = TopicPartition(kafka.topic, 0)
    with _client(KafkaConsumer, kafka) as reader:
        return reader.end_offsets([place]) == {place: 10}


LIMITS: dict[str, Can] = {
    "divide a topic within a consumer group": _divide_a_topic_within_a_group,
    "hide an aborted transaction": _hide_an_aborted_transaction,
    "forget records before an offset": _forget_records,
    "add topic partitions": _grow_a_topic,
    "tell the end of a topic partition": _know_its_end,
}


def _topic_of_ten(kafka: KafkaSettings, settings: Settings) -> KafkaSettings:
    changes = {"partitions": 1, "group_id": f"limits-{uuid.uuid4().hex}", "request_timeout_seconds": _SECONDS}
    topic_settings = kafka.model_copy(update={"topic": f"limits-{uuid.uuid4().hex}"} | changes)
    ensure_topic(topic_settings)
    send(settings.model_copy(update={"kafka": topic_settings}), valid_records(range(10)))
    return topic_settings


@pytest.mark.jvm
@pytest.mark.parametrize("what", LIMITS)
def test_apache_kafka_can(what: str, settings: Settings, request: pytest.FixtureRequest) -> None:
    """Apache Kafka passes, so the check itself is valid."""
    kafka = request.getfixturevalue("kafka").settings()
    assert LIMITS[what](_topic_of_ten(kafka, settings))


@pytest.mark.slow
@pytest.mark.usefixtures("broken_connections")
@pytest.mark.parametrize("what", LIMITS)
@pytest.mark.xfail(strict=True, reason="the embedded broker")
def test_the_embedded_broker_cannot(what: str, settings: Settings) -> None:
    """The embedded broker refuses or differs: the feature needs Apache Kafka."""
    assert LIMITS[what](_topic_of_ten(settings.kafka, settings))


def _notify(settings: Settings, rules: Path, *, stopped: bool = False) -> None:
    planned, stopping = plans(load_rules(rules), settings, lambda: connect(settings.redis)), threading.Event()
    if stopped:
        stopping.set()
    notify(settings, planned, stopping, Reports(*3 * [lambda *_: None]))


def _share_partitions(settings: Settings, _rules: Path) -> None:
    with open_ingest(with_ingest(settings, share_partitions=True)):
        pass


@pytest.mark.parametrize("run", [_notify, _share_partitions])
def test_what_needs_groups_says_so(run: Callable[[Settings, Path], None], settings: Settings, tmp_path: Path) -> None:
    """The embedded broker accepts a member and assigns it nothing: without the check it would wait silently."""
    rules = tmp_path / "notify.toml"
    rules.write_text(_RULES)
    create_lake(settings.lake_root)
    ensure_topic(settings.kafka)
    with pytest.raises(ConfigurationError, match=r"needs consumer groups.*the embedded broker at 127\.0\.0\.1:"):
        run(settings, rules)


def test_the_command_refuses_before_it_says_that_it_runs(settings: Settings, tmp_path: Path) -> None:
    """What `notify` prints first is what it does."""
    rules = tmp_path / "notify.toml"
    rules.write_text(webhook("ops", "http://127.0.0.1:9"))
    ensure_topic(settings.kafka)
    with ended(command(settings, rules)) as process:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 78
    assert "error KL-CONFIGURATION: karmalake notify needs consumer groups" in output
    assert "notifying" not in output


def test_a_notifier_that_is_stopped_at_its_start_asks_nothing(settings: Settings, tmp_path: Path) -> None:
    """SIGTERM came while it loaded: it ends cleanly, even where it could not run."""
    rules = tmp_path / "notify.toml"
    rules.write_text(_RULES)
    _notify(settings, rules, stopped=True)


def test_each_limit_is_documented() -> None:
    """docs/operations.md says what to expect."""
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## The embedded broker")
    assert [what for what in LIMITS if f"| {what} |" not in section] == []
