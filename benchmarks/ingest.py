"""From a topic of Protobuf events on a real Apache Kafka to deduplicated Parquet: karmalake, its parts and its peers.

One broker and one run. Each runs in its own process, one after the other, from the first record to the last; slow peers
read fewer of the same records. docs/benchmarks.md describes what each of them does and lacks.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers.environment import peers_python
from benchmarks.peers.protocol import Job, PeerError, ask
from benchmarks.report import save_results
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from tests.services.kafka_cluster import KafkaCluster

_TOPIC_PARTITIONS = 4
_CHUNK_RECORDS = 250_000
_COLUMNS = ("means", "records", "seconds", "events/s", "times the script", "rows", "ids", "does not")
# Every 33rd record is a duplicate. Ids are random, users many, event times within one day.
EVENTS = """
WITH numbers AS (
    SELECT CASE WHEN i % 33 = 32 THEN i - 1 - hash(i) % least(i, 500000)::UBIGINT ELSE i END::BIGINT AS n
    FROM range($first, $last) AS numbers(i)
    ORDER BY i
)
SELECT
    md5(n::VARCHAR) AS event_id,
    'user-' || hash(n * 7) % 200000 AS user_id,
    'DriverRated' AS action_type,
    make_timestamptz(1763600000000000 + n * 10000) AS event_time,
    MAP {'rating': (1 + hash(n) % 5)::VARCHAR, 'comment': array_to_string([
        md5((n * 64 + k)::VARCHAR) FOR k IN range($words)], ' ')} AS metadata
FROM numbers
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer: its module, the fraction 1/`part` of the records that it reads, and the features that it lacks."""

    module: str
    name: str
    part: int
    lacks: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Records of about one size: padding in words of 33 bytes, and the number of records."""

    name: str
    words: int
    records: int


_WORKLOADS = (Workload("small", 0, 3_000_000), Workload("large", 27, 600_000))
_PEERS = (
    Peer("karmalake", "karmalake drain", 1, ""),
    Peer("script", "script: confluent-kafka, set, pyarrow", 1, "exactly-once; dedup after a restart; dead letters"),
    Peer("spark", "Spark Structured Streaming to Delta", 2, "dead letters; decodes in Python: no spark-protobuf"),
    Peer("quix", "Quix Streams", 20, "exactly-once; dedup across users; dead letters"),
    Peer("bytewax_flow", "Bytewax", 10, "exactly-once; dedup and offsets after a restart; dead letters"),
)
_SCRIPT = "script"


def run(folder: Path) -> None:
    """Measure every peer with small and with large records."""
    try:
        python = peers_python()
    except PeerError as error:
        sys.exit(f"{error}\nthe producer needs them, too")
    (folder / "kafka").mkdir()
    with KafkaCluster(folder / "kafka") as kafka:
        for workload in _WORKLOADS:
            _measure(folder / workload.name, kafka, workload, python)


def _measure(folder: Path, kafka: KafkaCluster, workload: Workload, python: str) -> None:
    size = _write_records(folder, workload)
    print(f"\n{workload.name}: {workload.records:,} records of {size} bytes on {_TOPIC_PARTITIONS} topic partitions")
    topics = {part: _fill(kafka, folder, workload, part, python) for part in sorted({peer.part for peer in _PEERS})}
    done = {peer: _measure_peer(folder, topics[peer.part], peer, python) for peer in _PEERS}
    answers = {peer: answer for peer, answer in done.items() if answer is not None}
    rates = {peer: topics[peer.part].records / answer["seconds"] for peer, answer in answers.items()}
    script = next((rate for peer, rate in rates.items() if peer.module == _SCRIPT), float("nan"))
    rows: list[tuple[Any, ...]] = []
    for peer, answer in answers.items():
        rest = (answer["rows"], answer["ids"], peer.lacks)
        records = topics[peer.part].records
        rows.append((peer.name, records, answer["seconds"], round(rates[peer]), rates[peer] / script, *rest))
    stages = _measure_stages(folder, topics[1])
    for name, seconds in stages.items():
        rate = workload.records / seconds
        rows.append((f"alone: {name}", workload.records, seconds, round(rate), rate / script, None, None, ""))
    failed = [peer.name for peer in _PEERS if peer not in answers]
    save_results(f"ingest-{workload.name}", _COLUMNS, rows, "events/s", bytes_per_record=size, failed=failed)


def _write_records(folder: Path, workload: Workload) -> int:
    """Write the records as keys and values in sending order; return their mean size in bytes."""
    folder.mkdir()
    schema = pa.schema([("key", pa.binary()), ("value", pa.binary())])
    size = 0
    with duckdb.connect() as connection, pq.ParquetWriter(folder / "records.parquet", schema) as writer:
        connection.execute("SET TimeZone = 'UTC'")
        for first in range(0, workload.records, _CHUNK_RECORDS):
            last = min(first + _CHUNK_RECORDS, workload.records)
            values = {"first": first, "last": last, "words": workload.words}
            rows = connection.sql(EVENTS, params=values).to_arrow_table().cast(EVENT)
            payloads = encode(rows)
            size += sum(map(len, payloads.to_pylist()))
            writer.write_table(pa.table([rows["user_id"].cast(pa.binary()), payloads], schema))
    return round(size / workload.records)


def _fill(kafka: KafkaCluster, folder: Path, workload: Workload, part: int, python: str) -> Job:
    topic = kafka.new_topic(_TOPIC_PARTITIONS)
    job = Job(kafka.bootstrap_servers, topic, workload.records // part, str(folder))
    ask(python, "bulk_producer", job, folder / "bulk_producer.log")
    return job


def _measure_peer(folder: Path, topic: Job, peer: Peer, python: str) -> dict[str, Any] | None:
    """Return the seconds of a peer, and the rows and distinct ids in its files; print and return None if it fails."""
    own = folder / peer.module
    own.mkdir()
    job = Job(topic.bootstrap_servers, topic.topic, topic.records, str(own))
    try:
        answer = ask(sys.executable if peer.module == "karmalake" else python, peer.module, job, own / "log")
    except PeerError as error:
        print(f"did not run: {error}")
        return None
    expected = _ids_of(folder, topic.records)
    answer["rows"], answer["ids"] = _count(own)
    if (answer["rows"], answer["ids"]) != (expected, expected):
        print(f"{peer.name} wrote {answer['rows']:,} rows of {answer['ids']:,} ids, not {expected:,}")
    return answer


def _measure_stages(folder: Path, topic: Job) -> dict[str, float]:
    own = folder / "stages"
    own.mkdir()
    job = Job(topic.bootstrap_servers, topic.topic, topic.records, str(own))
    return ask(sys.executable, "stages", job, own / "log")["parts"]


def _ids_of(folder: Path, records: int) -> int:
    """Return the number of distinct values in the first `records`."""
    query = "SELECT count(DISTINCT value) FROM (FROM read_parquet($path) LIMIT $records)"
    return _one_row(query, path=str(folder / "records.parquet"), records=records)[0]


def _count(folder: Path) -> tuple[int, int]:
    """Return the rows and distinct ids in a peer's Parquet files."""
    parts = {"_delta_log", "warm-up", "checkpoint", "state"}
    paths = [str(path) for path in folder.rglob("*.parquet") if not parts & set(path.parts)]
    paths = [path for path in paths if "data" not in Path(path).relative_to(folder).parts or "/events/" in path]
    rows, ids = _one_row("SELECT count(*), count(DISTINCT event_id) FROM read_parquet($paths)", paths=paths)
    return rows, ids


def _one_row(query: str, **values: Any) -> tuple[Any, ...]:
    with duckdb.connect() as connection:
        return connection.execute(query, values).fetchall()[0]
