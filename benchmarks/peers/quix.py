"""Peer (c): Quix Streams, dedup in its state store (RocksDB, by the key's user and the event_id), its own Parquet sink.

State of the library's own kind, with a changelog topic; at-least-once, so a crash may write rows again.
"""

import contextlib
import logging
from typing import Any

from quixstreams import Application, State
from quixstreams.models.serializers.protobuf import ProtobufDeserializer
from quixstreams.sinks.community.file.formats import ParquetFormat
from quixstreams.sinks.community.file.local import LocalFileSink

from benchmarks.peers.protocol import Job, serve
from pipelines.contract.event_pb2 import Event


def _drain(job: Job) -> None:
    app = Application(
        broker_address=job.bootstrap_servers,
        consumer_group=f"quix-{job.topic}",
        auto_offset_reset="earliest",
        state_dir=f"{job.folder}/state",
        commit_interval=5.0,
        commit_every=50_000,
        loglevel=logging.WARNING,
    )
    left = job.records

    def is_new(event: Any, state: State) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            app.stop()
        if state.exists(event.event_id):
            return False
        state.set(event.event_id, 1)
        return True

    topic = app.topic(job.topic, value_deserializer=ProtobufDeserializer(Event, to_dict=False))
    new = app.dataframe(topic).filter(is_new, stateful=True)
    parquet = ParquetFormat(compression="zstd")
    new.apply(_as_row).sink(LocalFileSink(directory="rows", format=parquet))
    with contextlib.chdir(job.folder):  # the sink takes no path with a hyphen
        app.run()


def _as_row(event: Any) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "action_type": event.action_type,
        "event_time": event.timestamp.seconds * 1_000_000 + event.timestamp.nanos // 1000,
        "metadata": [{"key": key, "value": value} for key, value in event.metadata.items()],
    }


if __name__ == "__main__":
    serve(_drain)
