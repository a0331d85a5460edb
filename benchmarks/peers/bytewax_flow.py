"""Peer (d): Bytewax, dedup in a stateful step keyed by event_id, a sink that writes one Parquet file per batch.

One worker. Without a recovery store no offsets are kept: run again, it reads everything again.
"""

from itertools import count
from typing import Any

import bytewax.operators as op
import pyarrow.parquet as pq
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from benchmarks.peers.protocol import Job, serve
from benchmarks.peers.rows import as_row, to_columns
from pipelines.contract.event_pb2 import Event

_AT_ONCE = 50_000


class _Files(StatelessSinkPartition[tuple[Any, ...]]):
    """Collects rows and writes a file whenever there are enough, and at the end."""

    def __init__(self, folder: str) -> None:
        self._folder, self._numbers, self._rows = folder, count(), []

    def write_batch(self, items: list[tuple[Any, ...]]) -> None:
        self._rows += items
        if len(self._rows) >= _AT_ONCE:
            self.close()

    def close(self) -> None:
        if self._rows:
            pq.write_table(
                to_columns(self._rows), f"{self._folder}/{next(self._numbers):06}.parquet", compression="zstd"
            )
            self._rows = []


class _Parquet(DynamicSink[tuple[Any, ...]]):
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Files:  # noqa: ARG002 # theirs
        return _Files(self._folder)


def _first_only(seen: bool | None, event: Any) -> tuple[bool, list[Any]]:  # noqa: FBT001 # the library's order
    return True, [] if seen else [event]


def _drain(job: Job) -> None:
    flow = Dataflow("peer")
    source = KafkaSource([job.bootstrap_servers], [job.topic], tail=False, batch_size=_AT_ONCE)
    records = op.input("records", flow, source)
    events = op.map("decode", records, lambda record: Event.FromString(record.value))
    keyed = op.key_on("by id", events, lambda event: event.event_id)
    new = op.stateful_flat_map("dedup", keyed, _first_only)
    op.output("write", op.map("row", new, lambda item: as_row(item[1])), _Parquet(job.folder))
    run_main(flow)


if __name__ == "__main__":
    serve(_drain)
