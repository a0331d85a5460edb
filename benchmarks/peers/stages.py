"""The time of each stage of karmalake's ingest on its own: how close the whole is to its slowest stage."""

import time
from collections.abc import Generator
from contextlib import closing, contextmanager

from kafka.structs import TopicPartition

from benchmarks.peers.karmalake import settings_of, warm_up
from benchmarks.peers.protocol import Job, serve
from pipelines.contract.decode import decode
from pipelines.contract.schema import filter_rows
from pipelines.ingest.kafka import open_source
from pipelines.ingest.record_batches import count
from pipelines.lake.files import write_ranges
from pipelines.lake.index import NEW, open_index
from pipelines.lake.tables import create_lake


def _measure(job: Job) -> dict[str, object]:
    """Return the seconds of each part: fetching over the whole topic, the others batch by batch of a second reading."""
    parts: dict[str, float] = dict.fromkeys(("fetch", "decode", "digest and index", "Parquet write"), 0.0)
    with _timed(parts, "fetch"):
        _fetch(job)
    settings = settings_of(job)
    lake = create_lake(settings.lake_root)
    events = lake.table("events")
    with open_source(settings) as source, closing(open_index(settings.index_dir, lake, events)) as index:
        checkpoint, read = source.next_checkpoint(), 0
        while read < job.records:
            batch = source.poll(checkpoint)
            checkpoint = source.next_checkpoint()
            if batch is None:
                continue
            read += len(batch.records)
            with _timed(parts, "decode"):
                decoded = decode(batch.records, settings.contract)
            with _timed(parts, "digest and index"):
                classification = index.classify(decoded.events)
                index.extend(classification.new, index.version)
            rows = filter_rows(decoded.events, classification.mask(NEW))
            with _timed(parts, "Parquet write"):
                write_ranges(f"{job.folder}/written", rows, str(read))
    return {"parts": parts}


def _fetch(job: Job) -> None:
    """Read the topic by ingest's own consumer, and only count."""
    with open_source(settings_of(job, "fetch")) as source:
        places = [TopicPartition(job.topic, partition) for partition in source.consumer.partitions_for_topic(job.topic)]
        source.consumer.assign(places)
        source.consumer.seek_to_beginning()
        read = 0
        while read < job.records:
            read += sum(count(item) for items in source.consumer.poll(timeout_ms=500).values() for item in items)


@contextmanager
def _timed(parts: dict[str, float], name: str) -> Generator[None]:
    begun = time.perf_counter()
    yield
    parts[name] += time.perf_counter() - begun


if __name__ == "__main__":
    serve(_measure, warm_up)
