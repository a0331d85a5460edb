"""The producer of `ingest`, not a peer: sends the records of a Parquet file (key, value), compressed with lz4.

Keys are assigned to topic partitions by murmur2, as in the Java client.
"""

import pyarrow.parquet as pq
from confluent_kafka import Producer

from benchmarks.peers.protocol import Job, serve

_CHUNK_RECORDS = 20_000


def _fill(job: Job) -> None:
    """Send the first `records` of `folder`/records.parquet and wait for the broker."""
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "compression.type": "lz4",
            "enable.idempotence": True,
            "linger.ms": 50,
            "batch.size": 256 * 1024,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 10 * _CHUNK_RECORDS,
            "queue.buffering.max.kbytes": 256 * 1024,
        }
    )
    failures: list[str] = []
    remaining = job.records
    for batch in pq.ParquetFile(f"{job.folder}/records.parquet").iter_batches(_CHUNK_RECORDS):
        for key, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if remaining == 0:
                break
            producer.produce(
                job.topic, value, key, on_delivery=lambda error, _: failures.append(str(error)) if error else None
            )
            remaining -= 1
        while len(producer) > 8 * _CHUNK_RECORDS:
            producer.poll(0.05)
        producer.poll(0)
    if producer.flush(60) or failures:
        raise RuntimeError(f"records were not delivered: {failures[:1]}")


if __name__ == "__main__":
    serve(_fill)
