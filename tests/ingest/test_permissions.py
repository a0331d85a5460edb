"""The permissions that ingest needs: READ and DESCRIBE on the topic, none on the group."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

from pipelines.errors import ConfigurationError
from pipelines.operate.audit import audit
from pipelines.operate.lag.measure import measure_lag
from pipelines.settings import Settings
from tests.draining import assert_verified, drain_all, query, send, valid_records, with_ingest
from tests.services.kafka_cluster import USER, KafkaCluster
from tests.services.requirements import require
from tests.services.waiting import wait_for

pytestmark = pytest.mark.jvm
_AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[KafkaCluster]:
    """Return a broker that enforces ACLs; anonymous clients are super users."""
    require("kafka")
    folder = tmp_path / "kafka"
    folder.mkdir()
    with KafkaCluster(folder, secure=True, properties=_AUTHORIZER) as cluster:
        yield cluster


@pytest.mark.slow
def test_the_group_needs_no_permission(
    guarded: KafkaCluster, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a permission on the group ingest works, and one warning names the missing one."""
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 2}
    everything = with_ingest(settings.model_copy(update={"kafka": guarded.settings(**names)}))
    bus = everything.model_copy(update={"kafka": guarded.settings("SASL_SSL", **names)})
    send(everything, valid_records(range(30)))
    with pytest.raises(ConfigurationError, match="was refused"):
        drain_all(bus)
    _allow(guarded, bus, ACLOperation.READ, ACLOperation.DESCRIBE)
    wait_for("the permission to be known", lambda: _may_read(bus))
    with caplog.at_level(logging.WARNING, "pipelines.ingest.kafka"):
        drain_all(with_ingest(bus, max_batch_records=1))
    warnings = [record.getMessage() for record in caplog.records if record.name == "pipelines.ingest.kafka"]
    assert len(warnings) == 1
    assert f"READ on the group {bus.kafka.group_id} is missing among the ACLs" in warnings[0]
    assert query(bus, "SELECT count(*) FROM events") == [(30,)]
    assert measure_lag(bus).lag_records == 0
    assert audit(bus).passed
    assert_verified(bus)


def _allow(cluster: KafkaCluster, bus: Settings, *operations: ACLOperation) -> None:
    topic = ResourcePattern(ResourceType.TOPIC, bus.kafka.topic, ACLResourcePatternType.LITERAL)
    with cluster.admin() as admin:
        admin.create_acls([ACL(f"User:{USER}", "*", each, ACLPermissionType.ALLOW, topic) for each in operations])


def _may_read(bus: Settings) -> bool:
    try:
        measure_lag(bus)
    except ConfigurationError:
        return False
    return True
