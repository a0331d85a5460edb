"""The audit agrees with what was planted, and finds what ingest would have lost or doubled (`nothing-lost`, `once`)."""

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
from pipelines.simulate.simulator import Rates, simulate
from tests.draining import drain_all, query, send, with_ingest

_FAULTS = Rates(duplicates=0.1, conflicts=0.02, malformed=0.02)


def test_every_offset_is_accounted_for(settings: Settings) -> None:
    """Accepted, repeated and rejected are what the simulator planted; what came later is not judged."""
    world = simulate(5, 1_000, rates=_FAULTS)
    send(settings, world.records)
    drain_all(settings)
    send(settings, simulate(6, 200).records)
    found = audit(settings)
    assert found.passed
    assert found.events == sum(p.accepted for p in found.partitions) == world.planted.distinct
    assert sum(p.repeated for p in found.partitions) == world.planted.duplicates + world.planted.conflicts
    assert sum(p.dead_letters for p in found.partitions) == sum(world.planted.malformed.values())
    for p in found.partitions:
        assert p.next_offset - p.first_offset == p.accepted + p.repeated + p.dead_letters + p.absent + p.lost
        assert p.absent == 0


@pytest.mark.parametrize("what", ["accepted", "rejected"])
def test_a_sink_that_drops_records_is_caught(settings: Settings, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that move past records that are nowhere: each of them is lost, and one is shown."""
    world = simulate(5, 500, rates=Rates(malformed=0.05))
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


def test_a_sink_that_doubles_events_is_caught(settings: Settings) -> None:
    """Events that are committed twice are counted."""
    send(settings, simulate(5, 300, rates=Rates(duplicates=0, malformed=0)).records)
    drain_all(settings)
    lake = open_lake(settings.lake_root)
    rows = lake.table("events").to_pyarrow_table().slice(0, 7).drop_columns(["event_day", "batch_id"])
    record = CommitRecord(uuid4().hex, "a broken sink", datetime.now(UTC), ())
    commit_batch(lake, lake.table("events"), stage_events(lake, _map(rows), record.batch_id), record)
    found = audit(settings)
    assert (found.doubled, found.lost) == (7, 0)
    assert not found.passed


def test_what_was_not_read_yet_is_not_lost(settings: Settings) -> None:
    """Only offsets below the lake's checkpoints are judged; without a lake there is nothing to judge."""
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
