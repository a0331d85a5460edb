"""The broker goes away under a notifier: that only delays."""

from pathlib import Path

import pytest

from pipelines.emit.topics import ensure_topic
from pipelines.settings import Settings
from tests.draining import send, valid_records
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import command, lag, webhook
from tests.notify.receiver import Receiver
from tests.services.process import ended
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = [pytest.mark.jvm, pytest.mark.slow]


@pytest.mark.usefixtures("broken_connections")
def test_a_killed_broker_only_delays(
    settings: Settings, tmp_path: Path, receiver: Receiver, write_rules: WriteRules
) -> None:
    """It is killed and started again under a notifier, which goes on: nothing is missed."""
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
