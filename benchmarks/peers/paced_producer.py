"""The producer of `freshness`, not a peer: sends each record at its due time and reports the send times of probes.

`folder`/paced.parquet has the columns key, value, due (seconds since 1970) and is_probe, ordered by `due`. A line on
standard output is the key of a probe and the time at which it was passed to the client.
"""

import json
import time

import pyarrow.parquet as pq
from confluent_kafka import Producer

from benchmarks.peers.protocol import Job

_SLICE_SECONDS = 0.05


def _send(job: Job) -> None:
    """Send all records and wait for the broker."""
    producer = Producer({"bootstrap.servers": job.bootstrap_servers, "partitioner": "murmur2_random", "linger.ms": 5})
    failures: list[str] = []
    now = time.time()
    for batch in pq.ParquetFile(f"{job.folder}/paced.parquet").iter_batches(job.records):
        columns = (column.to_pylist() for column in batch.select(["key", "value", "due", "is_probe"]).columns)
        for key, value, due, is_probe in zip(*columns, strict=True):
            while due > now:
                producer.poll(0)
                time.sleep(_SLICE_SECONDS)
                now = time.time()
            if is_probe:
                print(key.decode(), time.time(), flush=True)
            producer.produce(
                job.topic, value, key, on_delivery=lambda error, _: failures.append(str(error)) if error else None
            )
    if producer.flush(60) or failures:
        raise RuntimeError(f"records were not delivered: {failures[:1]}")


if __name__ == "__main__":
    _send(Job(**json.loads(input())))
