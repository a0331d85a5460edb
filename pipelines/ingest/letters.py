"""Dead letters for others to read: copies on the topic `{topic}.dlq`, where `ingest.publish_dead_letters` is on.

They are sent before their batch is committed, so a crash between the two sends them again: place and batch are in the
headers. The lake's own table is what counts.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipelines.emit.clients import translated
from pipelines.emit.producer import Record, delivering
from pipelines.emit.topics import ensure_topic
from pipelines.settings import Settings

_PREFIX = "karmalake."
_TOLD = ("reason", "detail", "topic", "topic_partition", "offset")
Publish = Callable[[pa.Table, str], None]
"""Sends rejected records (REJECTED columns) of a batch, and waits for the broker."""


def keep_here(_rejected: pa.Table, _batch_id: str) -> None:
    """Send nothing."""


@contextmanager
def open_letters(settings: Settings) -> Generator[Publish]:
    """Yield what publishes dead letters, or does not; the topic is created like that of events.

    Raises TransientError when the brokers do not answer.
    """
    if not settings.ingest.publish_dead_letters:
        yield keep_here
        return
    kafka = settings.kafka.model_copy(update={"topic": f"{settings.kafka.topic}.dlq"})
    ensure_topic(kafka)
    with delivering(kafka) as sending:

        def publish(rejected: pa.Table, batch_id: str) -> None:
            with translated(kafka, f"writing dead letters to {kafka.topic}"):
                for record in _records(rejected, batch_id):
                    sending.send(record)
                sending.wait()

        yield publish


def _records(rejected: pa.Table, batch_id: str) -> Iterator[Record]:
    for row in rejected.to_pylist():
        theirs = [(header["key"], header["value"] or b"") for header in row["headers"] or ()]
        yield Record(row["key"], row["value"], [*theirs, *_told(row), (f"{_PREFIX}batch_id", batch_id.encode())])


def _told(row: dict[str, Any]) -> list[tuple[str, bytes]]:
    return [(f"{_PREFIX}{name}", str(row[name]).encode()) for name in _TOLD]
