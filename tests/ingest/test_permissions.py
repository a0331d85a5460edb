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

from pipelines.drain import drain, open_ingest
from pipelines.errors import ConfigurationError, TransientError
from pipelines.ingest import group_offsets
from pipelines.operate.audit import audit
from pipelines.operate.lag.measure import measure_group, measure_lag
from pipelines.settings import Settings
from tests.draining import assert_verified, drain_all, query, send, send_to, valid_records, with_ingest
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
    guarded: KafkaCluster, settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a permission on the group ingest works, and one warning names the missing one.

    Once it is granted, a later commit of the same ingest brings the group to the end of every topic partition.
    """
    for name in ("_FIRST_PAUSE_SECONDS", "_MAX_PAUSE_SECONDS"):
        monkeypatch.setattr(group_offsets, name, 1e-6)
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 2}
    everything = with_ingest(settings.model_copy(update={"kafka": guarded.settings(**names)}))
    bus = with_ingest(everything.model_copy(update={"kafka": guarded.settings("SASL_SSL", **names)}))
    send(everything, valid_records(range(30)))
    with pytest.raises(ConfigurationError, match="was refused"):
        drain_all(bus)
    _allow(guarded, ResourceType.TOPIC, bus.kafka.topic, ACLOperation.READ, ACLOperation.DESCRIBE)
    wait_for("the permission to be known", lambda: _may_read(bus))
    sent = 30
    with (
        caplog.at_level(logging.WARNING, "pipelines.ingest.group_offsets"),
        open_ingest(with_ingest(bus, max_batch_records=1)) as ingest,
    ):
        drain(ingest, lambda _: None)
        _allow(guarded, ResourceType.GROUP, bus.kafka.group_id, ACLOperation.READ)
        while not _is_at_end(everything):
            send_to(everything, 0, range(sent, sent + 1))
            sent += drain(ingest, lambda _: None)
    warnings = [record.getMessage() for record in caplog.records if record.name == "pipelines.ingest.group_offsets"]
    assert len(warnings) == 2
    assert f"READ on the group {bus.kafka.group_id} is missing among the ACLs" in warnings[0]
    assert query(bus, "SELECT count(*) FROM events") == [(sent,)]
    assert measure_lag(bus).lag_records == 0
    assert audit(bus).passed
    assert_verified(bus)


def _allow(cluster: KafkaCluster, kind: ResourceType, name: str, *operations: ACLOperation) -> None:
    resource = ResourcePattern(kind, name, ACLResourcePatternType.LITERAL)
    with cluster.admin() as admin:
        admin.create_acls([ACL(f"User:{USER}", "*", each, ACLPermissionType.ALLOW, resource) for each in operations])


def _is_at_end(settings: Settings) -> bool:
    """Return whether the group has the end of both topic partitions; the first group of a broker takes a while."""
    try:
        return [lag.lag_records for lag in measure_group(settings.kafka, settings.kafka.group_id)] == [0, 0]
    except TransientError:
        return False


def _may_read(bus: Settings) -> bool:
    try:
        measure_lag(bus)
    except ConfigurationError:
        return False
    return True
