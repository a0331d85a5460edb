"""Reads the dead-letter topic, for tests of the copies in it."""

from typing import Any

from pipelines.bus.topics import topic_exists
from pipelines.dlq import dead_letter_topic
from pipelines.settings import Settings
from tests.draining import query
from tests.emit.test_producer import read_topic

Place = tuple[str, int, int]


def read_copies(settings: Settings) -> list[Any]:
    """Return every record of the dead-letter topic; none if it does not exist."""
    topic = dead_letter_topic(settings, settings.kafka.topic)
    return read_topic(topic) if topic_exists(topic) else []


def read_headers(copy: Any) -> dict[str, bytes]:
    """Return the headers of a copy by name."""
    return dict(copy.headers)


def copied_places(settings: Settings) -> list[Place]:
    """Return the sorted places of the originals of this lake's copies; a place with two copies is there twice."""
    batches = {batch_id for (batch_id,) in query(settings, "SELECT batch_id FROM commits")}
    headers = [read_headers(copy) for copy in read_copies(settings)]
    return sorted(_place(header) for header in headers if header["karmalake.batch_id"].decode() in batches)


def dead_letter_places(settings: Settings) -> list[Place]:
    """Return the sorted places of the lake's dead letters."""
    rows = query(settings, 'SELECT topic, topic_partition, "offset" FROM dead_letters')
    return sorted((str(topic), int(partition), int(offset)) for topic, partition, offset in rows)


def _place(headers: dict[str, bytes]) -> Place:
    names = ("karmalake.topic", "karmalake.topic_partition", "karmalake.offset")
    topic, partition, offset = (headers[name].decode() for name in names)
    return topic, int(partition), int(offset)
