"""Processor time per event in Protobuf, Avro and JSON: the same events on a topic of a real Apache Kafka.

Each format is read in our own contract, and by sources that map it. It is not wall time, so that neither the broker nor
other load on the machine counts. Decoding alone runs in this process; each drain (with the process of its source, but
without the start of that), and the script (with Protobuf objects or orjson), in a process of its own, by turns; the
least time of each counts.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastavro import parse_schema, schemaless_writer
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from benchmarks.ingest import EVENTS
from benchmarks.peers.environment import peers_python
from benchmarks.peers.protocol import Job, PeerError, ask
from benchmarks.report import require_count, save_results
from pipelines.contract import event_pb2
from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.decode import decode
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT, RECORD
from pipelines.settings import ContractSettings
from tests.services.kafka_cluster import KafkaCluster

_RECORDS = 1_000_000
_TOPIC_PARTITIONS = 4
_DECODED, _TIMES, _ROUNDS = 50_000, 5, 2
_SCRIPTED = ("protobuf", "json")
_COLUMNS = (
    "format",
    "events by",
    "bytes",
    "decode us",
    "drain us",
    "speed of Protobuf's",
    "times the contract's",
    "script us",
    "times the script",
)
_AVRO: Any = parse_schema(json.loads(OWN_SCHEMA))
_CONTRACT = "contract"
_SELECT = "select = '''SELECT event_id, user_id, action_type, \"timestamp\", metadata FROM record'''"
_JSON_SELECT = """time_unit = "iso"
select = '''
SELECT value->>'event_id' AS event_id, value->>'user_id' AS user_id, value->>'action_type' AS action_type,
       value->>'timestamp' AS timestamp,
       {'rating': value->'metadata'->>'rating', 'comment': value->'metadata'->>'comment'} AS metadata
FROM record
'''
"""
_JSON_FIELDS = """event_id = "event_id"
user_id = "user_id"
action_type_column = "action_type"
time = "timestamp"
metadata = { rating = "metadata.rating", comment = "metadata.comment" }
"""
_SOURCES: Mapping[str, Mapping[str, str]] = {
    "protobuf": {"SELECT": f'schema = "event.desc"\nmessage = "karmalake.v1.Event"\ntime_zone = "UTC"\n{_SELECT}'},
    "avro": {"SELECT": f'schema = "event.avsc"\n{_SELECT}'},
    "json": {"fields": _JSON_FIELDS, "SELECT": _JSON_SELECT},
}
"""The sources of each format, without topic and format."""


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
            size, used = round(sum(map(len, values.to_pylist())) / _RECORDS), _decode_us(events, values, form)
            taken = _measure(job, python)
            script, own = taken.pop("script", None), taken[_CONTRACT]
            for by, drain in taken.items():
                alone = used if by == _CONTRACT else None
                faster = rows[0][4] / drain if rows else 1.0
                rows.append([form, by, size, alone, drain, faster, own / drain, script, script and script / drain])
    save_results("formats", _COLUMNS, rows, "drain us", records=_RECORDS)


def _measure(job: Job, python: str) -> dict[str, float]:
    """Return the processor time of each drain of a topic, by what makes the events, and of the script."""
    works: dict[str, tuple[str, str, Job]] = {_CONTRACT: (sys.executable, "karmalake", job)}
    for name, text in _SOURCES[job.format].items():
        sources = _write_source(Path(job.folder) / f"sources-{name}", job, text)
        works[name] = (sys.executable, "karmalake", replace(job, sources=str(sources)))
    if job.format in _SCRIPTED:
        works["script"] = (python, "script", job)
    taken: dict[str, float] = {}
    for number in range(_ROUNDS):
        for name, (interpreter, peer, work) in works.items():
            own = Path(job.folder) / f"{name}-{number}"
            own.mkdir()
            used = _cpu_us(interpreter, peer, replace(work, folder=str(own)))
            taken[name] = min(used, taken.get(name, used))
    return taken


def _write_source(folder: Path, job: Job, text: str) -> Path:
    """Write a source of the topic of a job, with the schemas of our own contract beside it."""
    folder.mkdir()
    heading = f'topic = "{job.topic}"\nformat = "{job.format}"\n'
    (folder / "mapped.toml").write_text(heading + text, encoding="utf-8")
    (folder / "event.avsc").write_text(OWN_SCHEMA, encoding="utf-8")
    files = FileDescriptorSet()
    for file in (*event_pb2.DESCRIPTOR.dependencies, event_pb2.DESCRIPTOR):
        file.CopyToProto(files.file.add())
    (folder / "event.desc").write_bytes(files.SerializeToString())
    return folder


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
    """Return the processor time of a peer without its start, in microseconds per event."""
    answer = ask(python, peer, job, Path(job.folder) / f"{peer}.log")
    return (answer["cpu_seconds"] - answer.get("start_cpu_seconds", 0.0)) / job.records * 1e6


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
