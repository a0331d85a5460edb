"""Several ingesters that share a topic of Apache Kafka through the consumer group, compared with a single one.

Processes that start together drain the same records into a new lake each time; the time is from the first batch to the
last commit. They share one machine with the broker.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import duckdb

from benchmarks.report import MeasurementError, require_success, save_results
from pipelines.bus.topics import ensure_topic
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import Record, produce_records
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import create_lake
from pipelines.reputation.lake_views import create_lake_views
from tests.services.kafka_cluster import KafkaCluster

_EVENTS, _CHUNK_RECORDS, _PARTITIONS = 2_000_000, 200_000, 8
_INGESTERS = (1, 2, 1, 2, 4)
_COLUMNS = ("ingesters", "seconds", "events/s", "commits", "processes that committed")
_ROWS = """
SELECT
    md5(i::VARCHAR) AS event_id,
    'user-' || hash(i) % 200000 AS user_id,
    'DriverRated' AS action_type,
    make_timestamptz(1763600000000000 + i * 10000) AS event_time,
    MAP {'rating': (1 + hash(i) % 5)::VARCHAR} AS metadata
FROM range($first, $last) AS numbers(i)
"""
_DONE = """
SELECT date_diff('millisecond', min(started), max(committed)) / 1000.0, count(*), sum(accepted)::BIGINT FROM commits
"""


def run(folder: Path) -> None:
    """Measure one, two and four ingesters."""
    (folder / "kafka").mkdir()
    with KafkaCluster(folder / "kafka") as kafka:
        settings = kafka.settings(topic="shared", partitions=_PARTITIONS)
        ensure_topic(settings)
        produce_records(settings, _records())
        rows = [_measure(folder / f"{number}", kafka, count) for number, count in enumerate(_INGESTERS)]
    save_results("share", _COLUMNS, rows, "events/s", topic_partitions=_PARTITIONS, events=_EVENTS)


def _records() -> Iterator[Record]:
    for first in range(0, _EVENTS, _CHUNK_RECORDS):
        with duckdb.connect() as connection:
            rows = (
                connection.sql(_ROWS, params={"first": first, "last": first + _CHUNK_RECORDS})
                .to_arrow_table()
                .cast(EVENT)
            )
        values = zip(rows["user_id"].to_pylist(), encode(rows).to_pylist(), strict=True)
        yield from (Record(user.encode(), value) for user, value in values)


def _measure(data_dir: Path, kafka: KafkaCluster, ingesters: int) -> tuple[int, float, int, int, int]:
    lake = create_lake(data_dir / "lake")
    values = {
        "KARMALAKE_DATA_DIR": str(data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KARMALAKE_KAFKA_TOPIC": "shared",
        "KARMALAKE_KAFKA_GROUP_ID": f"share-{uuid4().hex}",
        "KARMALAKE_INGEST_SHARE_PARTITIONS": "true",
        "KARMALAKE_INGEST_MAX_BATCH_RECORDS": "100000",
    }
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "drain"]
    drains = [
        subprocess.Popen(command, env=os.environ | values, stdout=subprocess.PIPE, text=True) for _ in range(ingesters)
    ]
    outputs = [drain.communicate()[0] for drain in drains]
    for drain in drains:
        require_success("karmalake drain", drain)
    with duckdb.connect() as connection:
        create_lake_views(connection, take_snapshot(lake))
        seconds, commits, accepted = connection.execute(_DONE).fetchall()[0]
    if accepted != _EVENTS:
        raise MeasurementError(f"{accepted:,} of {_EVENTS:,} events are in the lake")
    worked = sum("commits       0" not in output for output in outputs)
    return ingesters, float(seconds), round(_EVENTS / float(seconds)), int(commits), worked
