"""Processor time per event in Protobuf, Avro and JSON: the same events on a topic of a real Apache Kafka.

It is not wall time, so that neither the broker nor other load on the machine counts. Decoding alone runs in this
process; each drain, and the script (with Protobuf objects or orjson), in a process of its own.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastavro import parse_schema, schemaless_writer

from benchmarks.ingest import EVENTS
from benchmarks.peers.environment import peers_python
from benchmarks.peers.protocol import Job, PeerError, ask
from benchmarks.report import require_count, save_results
from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.decode import decode
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT, RECORD
from pipelines.settings import ContractSettings
from tests.services.kafka_cluster import KafkaCluster

_RECORDS = 1_000_000
_TOPIC_PARTITIONS = 4
_DECODED, _TIMES = 50_000, 5
_SCRIPTED = ("protobuf", "json")
_COLUMNS = ("format", "bytes", "decode us", "drain us", "speed of Protobuf's", "script us", "times the script")
_AVRO: Any = parse_schema(json.loads(OWN_SCHEMA))


def run(folder: Path) -> None:
    """Measure each format with the same events; microseconds of the processor are per event."""
    try:
        python = peers_python()
    except PeerError as error:
        sys.exit(f"{error}\nthe producer needs them, too")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(EVENTS, params={"first": 0, "last": _RECORDS, "words": 0})
        events = found.to_arrow_table().cast(EVENT).combine_chunks()
    rows: list[list[Any]] = []
    (folder / "kafka").mkdir()
    with KafkaCluster(folder / "kafka") as kafka:
        for form, encoded in _ENCODERS.items():
            values = encoded(events)
            job = _fill(folder / form, kafka, python, events, values, form)
            drain = _cpu_us(sys.executable, "karmalake", job)
            script = _cpu_us(python, "script", job) if form in _SCRIPTED else None
            faster = rows[0][3] / drain if rows else 1.0
            size = round(sum(map(len, values.to_pylist())) / _RECORDS)
            used = _decode_us(events, values, form)
            rows.append([form, size, used, drain, faster, script, script and script / drain])
    save_results("formats", _COLUMNS, rows, "drain us", records=_RECORDS)


def _to_json(events: pa.Table) -> pa.Array:
    return _encode_rows(events, lambda row: json.dumps(row | {"timestamp": _rfc_3339(row["timestamp"])}).encode())


def _rfc_3339(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _to_avro(events: pa.Table) -> pa.Array:
    return _encode_rows(events, _avro_of)


def _avro_of(row: dict[str, Any]) -> bytes:
    out = BytesIO()
    schemaless_writer(out, _AVRO, row)
    return out.getvalue()


def _encode_rows(events: pa.Table, encode_row: Callable[[dict[str, Any]], bytes]) -> pa.Array:
    rows = events.rename_columns([*EVENT.names[:3], "timestamp", "metadata"]).to_pylist()
    return pa.array([encode_row(row | {"metadata": dict(row["metadata"])}) for row in rows], pa.binary())


_ENCODERS: dict[str, Callable[[pa.Table], pa.Array]] = {"protobuf": encode, "avro": _to_avro, "json": _to_json}


def _fill(folder: Path, kafka: KafkaCluster, python: str, events: pa.Table, values: pa.Array, form: str) -> Job:
    folder.mkdir()
    keys = events["user_id"].cast(pa.binary())
    pq.write_table(pa.table({"key": keys, "value": values}), folder / "records.parquet")
    topic = kafka.new_topic(_TOPIC_PARTITIONS)
    job = Job(kafka.bootstrap_servers, topic, len(events), str(folder), form)
    ask(python, "bulk_producer", job, folder / "producer.log")
    return job


def _cpu_us(python: str, peer: str, job: Job) -> float:
    """Return the processor time of a peer, in microseconds per event."""
    return ask(python, peer, job, Path(job.folder) / f"{peer}.log")["cpu_seconds"] / job.records * 1e6


def _decode_us(events: pa.Table, values: pa.Array, form: str) -> float:
    """Return the processor time of decoding in batches, the best of several, in microseconds per event."""
    contract = ContractSettings.model_validate({"format": form})
    records = _records(events.slice(0, _DECODED), values.slice(0, _DECODED))
    best = float("inf")
    for _ in range(_TIMES):
        begun = time.process_time()
        decoded = decode(records, contract)
        best = min(best, time.process_time() - begun)
        require_count("events", len(decoded.events), len(records))
    return best / len(records) * 1e6


def _records(events: pa.Table, values: pa.Array) -> pa.Table:
    count = len(events)
    columns: dict[str, Any] = {
        "topic_id": pa.repeat("id", count),
        "topic": pa.repeat("topic", count),
        "topic_partition": np.zeros(count, np.int32),
        "offset": np.arange(count),
        "bus_time": events["event_time"],
        "key": events["user_id"].cast(pa.binary()),
        "value": values,
        "headers": pa.nulls(count, RECORD.field("headers").type),
    }
    return pa.table(columns, schema=RECORD)
