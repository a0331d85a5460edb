"""Peer (a): what a careful person writes in an afternoon, as fast as it gets without leaving Python objects.

librdkafka in large batches, Protobuf objects of the compiled runtime (or JSON by orjson), a set of the ids seen,
Parquet by batch, and offsets committed after the file is there. A crash between the two writes a batch twice, and the
set is lost with it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Message
from google.protobuf.message import DecodeError

from benchmarks.peers.protocol import Job, serve
from benchmarks.peers.rows import as_row, as_row_of_json, to_columns
from pipelines.contract.event_pb2 import Event

_AT_ONCE = 50_000
_ROW_OF: dict[str, Callable[[bytes], tuple[Any, ...]]] = {
    "protobuf": lambda value: as_row(Event.FromString(value)),
    "json": lambda value: as_row_of_json(orjson.loads(value)),
}
_INVALID = (DecodeError, ValueError, KeyError, TypeError)


def _drain(job: Job) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": f"script-{job.topic}-{Path(job.folder).name}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.min.bytes": 1024 * 1024,
            "fetch.wait.max.ms": 100,
            "max.partition.fetch.bytes": 8 * 1024 * 1024,
            "queued.max.messages.kbytes": 256 * 1024,
        }
    )
    consumer.subscribe([job.topic])
    seen: set[str] = set()
    read = files = 0
    while read < job.records:
        records = consumer.consume(min(_AT_ONCE, job.records - read), timeout=1.0)
        read += len(records)
        rows = _new_rows(records, seen, _ROW_OF[job.format])
        if rows:
            pq.write_table(to_columns(rows), f"{job.folder}/{files:06}.parquet", compression="zstd")
            files += 1
        if records:
            consumer.commit(asynchronous=False)
    consumer.close()


def _new_rows(
    records: list[Message], seen: set[str], row_of: Callable[[bytes], tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    add, append = seen.add, rows.append
    for record in records:
        try:
            row = row_of(record.value())
        except _INVALID:
            continue
        if row[0] not in seen:
            add(row[0])
            append(row)
    return rows


if __name__ == "__main__":
    serve(_drain)
