"""An outage of the broker only delays a notifier."""

import threading
from pathlib import Path

import pytest
import redis

from pipelines.bus.topics import ensure_topic
from pipelines.errors import TransientError
from pipelines.notify.branch import Reports
from pipelines.notify.rule_file import load_rules
from pipelines.notify.run import notify, plans
from pipelines.settings import KafkaSettings, Settings
from tests.draining import send, send_to, valid_records
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import command, lag, stream, webhook
from tests.notify.receiver import Receiver
from tests.services.process import ended
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = [pytest.mark.jvm, pytest.mark.slow]


@pytest.mark.usefixtures("broken_connections")
def test_a_killed_broker_only_delays(
    settings: Settings, tmp_path: Path, receiver: Receiver, write_rules: WriteRules
) -> None:
    """The broker is killed and restarted; the notifier continues, and nothing is missed."""
    require("kafka")
    from tests.services.kafka_cluster import KafkaCluster  # noqa: PLC0415 # warns when it is imported

    with KafkaCluster(tmp_path) as cluster:
        bus = settings.model_copy(update={"kafka": cluster.settings(topic="events", partitions=2)})
        ensure_topic(bus.kafka)
        send(bus, valid_records(range(50)))
        with ended(command(bus, write_rules(webhook("ops", receiver.url)))) as process:
            wait_for("the first events", lambda: len(set(receiver.keys)) == 50)
            cluster.kill(0)
            cluster.start(0)
            send(bus, valid_records(range(50, 100)))
            wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
            process.terminate()
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    assert set(receiver.keys) == {f"e-{number}" for number in range(100)}


def test_a_damaged_batch_delays_its_own_topic_partition(
    settings: Settings, tmp_path: Path, receiver: Receiver, write_rules: WriteRules
) -> None:
    """A wrong checksum is reported, and all events of the other topic partitions are delivered (`isolated`)."""
    require("kafka")
    from tests.services.kafka_cluster import KafkaCluster  # noqa: PLC0415 # warns when it is imported

    with KafkaCluster(tmp_path) as cluster:
        bus = settings.model_copy(update={"kafka": cluster.settings(topic="events", partitions=3)})
        ensure_topic(bus.kafka)
        for partition in range(3):
            send_to(bus, partition, range(partition * 100, partition * 100 + 50))
        cluster.damage(0, "events-1")
        with ended(command(bus, write_rules(webhook("ops", receiver.url)))) as process:
            wait_for("all but the damaged one", lambda: len(set(receiver.keys)) == 149, 240)
            send_to(bus, 2, range(300, 310))
            wait_for("the later events", lambda: len(set(receiver.keys)) == 159, 120)
            assert process.stdout is not None
            assert any("failed crc check" in line for line in process.stdout)  # waits for the report
            process.terminate()
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    assert "e-149" not in receiver.keys


def test_a_stop_while_no_broker_responds_is_no_outage(tmp_path: Path, write_rules: WriteRules) -> None:
    """A signal at the start ends the command cleanly, even if the brokers do not respond; otherwise it is an outage."""
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:9", request_timeout_seconds=1)
    settings, stopping = Settings(data_dir=tmp_path, kafka=kafka), threading.Event()
    reports = Reports(*[lambda *_: None] * 4)
    planned = plans(load_rules(write_rules(stream("ops", "notes"))), settings, redis.Redis)
    with pytest.raises(TransientError):
        notify(settings, planned, stopping, reports)
    stopping.set()
    notify(settings, planned, stopping, reports)
