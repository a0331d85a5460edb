"""Apache Kafka for the notifications: the embedded broker knows no consumer groups.

What imports kafka-python is imported late, as in tests/services/fixtures.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.settings import Settings
from tests.notify.receiver import SECRET, Receiver

if TYPE_CHECKING:
    from tests.services.kafka_cluster import KafkaCluster

WriteRules = Callable[..., Path]


@pytest.fixture
def bus(kafka: "KafkaCluster", settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of Apache Kafka with an empty topic of four partitions, and a low limit in flight."""
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from tests.draining import with_ingest  # noqa: PLC0415

    monkeypatch.setenv("NOTIFY_TEST_SECRET", SECRET)
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 4}
    notify = settings.notify.model_copy(
        update={"group_id": f"notify-{settings.kafka.topic}", "max_in_flight": 60, "stop_seconds": 1.0}
    )
    bus_settings = settings.model_copy(update={"kafka": kafka.settings(**names), "notify": notify})
    ensure_topic(bus_settings.kafka)
    return with_ingest(bus_settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a webhook that accepts everything, unless the test changes its answer."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def write_rules(tmp_path: Path) -> WriteRules:
    """Return a function that writes a rule file from pieces of TOML."""

    def write(*pieces: str) -> Path:
        file = tmp_path / "notify.toml"
        file.write_text("\n".join(pieces))
        return file

    return write
