"""Decompression bombs: record batches that are small on the wire and large in memory; memory of a poll is bounded.

The memory of a drain is measured in a separate process, on Apache Kafka.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from pipelines.operate.audit import audit
from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.draining import assert_verified, drain_all, query, send, valid_records, with_ingest
from tests.fuzz import wire
from tests.fuzz.raw_producer import RawProducer
from tests.ingest.hostile_batches import build, rebuilt, varint
from tests.ingest.raw_producer import produce_raw
from tests.services.kafka_cluster import KafkaCluster

pytestmark = pytest.mark.jvm
_MIB = 1024 * 1024
_TIME_MS = 1_772_366_400_000
_DRAIN = """
import sys
from pathlib import Path
from pipelines.settings import KafkaSettings, Settings
from tests.draining import drain_all
drain_all(Settings(data_dir=Path(sys.argv[1]), kafka=KafkaSettings(bootstrap_servers=sys.argv[2], topic=sys.argv[3])))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.fixture
def bus(kafka: KafkaCluster, settings: Settings) -> Settings:
    """Return settings of Apache Kafka with a topic of one partition that does not exist yet."""
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 1}
    return with_ingest(settings.model_copy(update={"kafka": kafka.settings(**names)}))


@pytest.mark.slow
def test_twenty_decompression_bombs_among_events(bus: Settings) -> None:
    """Each batch of 127 MiB of zeros is one poll and one dead letter; every event counts once; memory is bounded."""
    send(bus, valid_records(range(100)))
    _send_zeros(bus, 127 * _MIB, 20)
    send(bus, valid_records(range(100, 200)))
    peak_bytes = _drained_peak(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(200,)]
    assert query(bus, "SELECT count(*) FROM dead_letters") == [(20,)]
    assert_verified(bus)
    assert peak_bytes < 1_800 * _MIB, f"{peak_bytes / _MIB:.0f} MiB"


@pytest.mark.slow
def test_a_million_and_one_records_with_a_giant(bus: Settings) -> None:
    """A batch too large to decompress is one dead letter with its range, however many records it declares."""
    send(bus, valid_records(range(3)))
    assert produce_raw(bus.kafka, _million_and_one(140 * _MIB)) == 0
    send(bus, valid_records(range(3, 6)))
    drain_all(bus)
    [(offset, reason, detail)] = query(bus, 'SELECT "offset", reason, detail FROM dead_letters')
    assert (offset, reason) == (1_000_003, "undecodable")
    assert "offsets 3 to 1,000,003 (1,000,001 records by its header, zstd" in detail
    assert query(bus, "SELECT count(*) FROM events") == [(6,)]
    assert query(bus, "SELECT sum(gaps) FROM commits") == [(1_000_000,)]
    assert_verified(bus)
    assert audit(bus).passed


def _drained_peak(bus: Settings) -> int:
    """Drain in another process; return its peak memory in bytes."""
    assert bus.kafka.bootstrap_servers is not None
    arguments = [str(bus.data_dir), bus.kafka.bootstrap_servers, bus.kafka.topic]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DRAIN, *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, cwd=Path(REPOSITORY), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split()[-1]) * 1024


def _send_zeros(bus: Settings, size: int, times: int) -> None:
    """Send the same batch of one record several times: it is compressed once."""
    batch = bytes(wire.batch_of([wire.record(bytes(size))], codec=wire.ZSTD, first_ms=_TIME_MS))
    assert bus.kafka.bootstrap_servers is not None
    with RawProducer(bus.kafka.bootstrap_servers) as producer:
        for _ in range(times):
            producer.send(bus.kafka.topic, 0, batch)


def _million_and_one(size: int) -> bytes:
    """Return a batch of a million empty records and one of zeros, in less than a megabyte of zstd."""
    records = b"".join(_record(delta, b"") for delta in range(1_000_000)) + _record(1_000_000, bytes(size))
    payload = zstandard.ZstdCompressor(level=6).compress(records)
    header = build([(_TIME_MS, None, b"", [])])
    return rebuilt(header, payload, attributes=4, records_count=1_000_001, last_offset_delta=1_000_000)


def _record(delta: int, value: bytes) -> bytes:
    fields = b"\0\0" + varint(delta) + varint(-1) + varint(len(value)) + value + b"\0"
    return varint(len(fields)) + fields
