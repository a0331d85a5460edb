"""Truncation of the log of a topic partition on the disk of a broker, as after a power failure or a restore."""

from pathlib import Path

from pipelines.bus.topics import describe_topic
from pipelines.settings import KafkaSettings
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import wait_for

_LEADER_SECONDS = 120.0


def cut_log(cluster: KafkaCluster, folder: Path, kafka: KafkaSettings, batches: int, partition: int = 0) -> None:
    """Truncate a log of broker 0 (with data in `folder`) to its first `batches` record batches, and restart the broker.

    Index files are deleted, so that the broker rebuilds them.
    """
    cluster.stop(0)
    (segment,) = folder.glob(f"broker-0/{kafka.topic}-{partition}/*.log")
    raw, at = segment.read_bytes(), 0
    for _ in range(batches):
        at += int.from_bytes(raw[at + 8 : at + 12], "big") + 12
    assert at < len(raw)
    segment.write_bytes(raw[:at])
    indexes = (path for kind in ("*.index", "*.timeindex") for path in segment.parent.glob(kind))
    for derived in [*folder.glob("broker-0/.kafka_cleanshutdown"), *indexes]:
        derived.unlink()
    cluster.start(0)
    wait_for("the topic to have a leader", lambda: describe_topic(kafka), _LEADER_SECONDS)
