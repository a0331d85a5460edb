"""The audit agrees with the simulation, and detects lost and duplicated events (`nothing-lost`, `once`)."""

from datetime import UTC, datetime
from uuid import uuid4

import pyarrow as pa
import pytest

from pipelines.bus.topics import describe_topic
from pipelines.drain import drain_once, open_ingest
from pipelines.errors import UsageError
from pipelines.lake.commit import CommitRecord, commit_batch, stage_events
from pipelines.lake.tables import open_lake
from pipelines.operate.audit import audit
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.draining import drain_all, query, send, with_ingest

_FAULTS = FaultRates(duplicates=0.1, conflicts=0.02, malformed=0.02)


def test_every_offset_is_accounted_for(settings: Settings) -> None:
    """Counts of accepted, duplicate and rejected records equal the simulation's; unread records are not counted."""
    world = simulate(5, 1_000, rates=_FAULTS)
    send(settings, world.records)
    drain_all(settings)
    send(settings, simulate(6, 200).records)
    found = audit(settings)
    assert found.passed
    assert found.events == sum(p.accepted for p in found.partitions) == world.planted.distinct
    assert sum(p.duplicate_ids for p in found.partitions) == world.planted.duplicates + world.planted.conflicts
    assert sum(p.dead_letters for p in found.partitions) == sum(world.planted.malformed.values())
    for p in found.partitions:
        assert p.next_offset - p.first_offset == p.accepted + p.duplicate_ids + p.dead_letters + p.gaps + p.lost
        assert p.gaps == 0


@pytest.mark.parametrize("what", ["accepted", "rejected"])
def test_audit_detects_dropped_records(settings: Settings, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If checkpoints pass records that are stored nowhere, each of them is lost, with examples."""
    world = simulate(5, 500, rates=FaultRates(malformed=0.05))
    send(settings, world.records)
    if what == "accepted":
        monkeypatch.setattr("pipelines.drain.stage_events", lambda *_: [])
    else:
        monkeypatch.setattr("pipelines.drain.append", lambda *_: None)
    with open_ingest(with_ingest(settings, max_wait_seconds=1)) as ingest:
        record = drain_once(ingest)
    assert record is not None
    found = audit(settings)
    rejected = record.total("dead_letters")
    assert found.lost == (rejected if what == "rejected" else record.total("read") - rejected) > 0
    assert any(p.examples for p in found.partitions)
    assert not found.passed


def test_audit_detects_duplicated_events(settings: Settings) -> None:
    """Events that are committed twice are counted."""
    send(settings, simulate(5, 300, rates=FaultRates(duplicates=0, malformed=0)).records)
    drain_all(settings)
    lake = open_lake(settings.lake_root)
    rows = lake.table("events").to_pyarrow_table().slice(0, 7).drop_columns(["event_day", "batch_id"])
    record = CommitRecord(uuid4().hex, "a broken sink", datetime.now(UTC), ())
    commit_batch(lake, lake.table("events"), stage_events(lake.table("events"), _map(rows), record.batch_id), record)
    found = audit(settings)
    assert (found.duplicated, found.lost) == (7, 0)
    assert not found.passed


def test_unread_records_are_not_lost(settings: Settings) -> None:
    """Only offsets below the lake's checkpoints are audited; without a lake the audit is refused."""
    send(settings, simulate(5, 300).records)
    with pytest.raises(UsageError, match="no lake"):
        audit(settings)
    with open_ingest(with_ingest(settings, max_batch_records=1, max_wait_seconds=1)) as ingest:
        drain_once(ingest)
    found = audit(settings)
    topic = describe_topic(settings.kafka)
    assert topic is not None
    assert found.passed
    assert 0 < sum(p.next_offset for p in found.partitions) < sum(p.end_offset for p in topic.partitions)
    assert query(settings, "SELECT count(*) FROM events")[0][0] == found.events


def _map(rows: pa.Table) -> pa.Table:
    return rows.set_column(
        rows.schema.get_field_index("metadata"), "metadata", rows["metadata"].cast(pa.map_(pa.string(), pa.string()))
    )
