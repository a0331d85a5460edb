"""Reading the topic of dead letters, for the tests of what is copied there."""

from typing import Any

from pipelines.bus.topics import topic_exists
from pipelines.dlq import dead_letter_topic
from pipelines.settings import Settings
from tests.draining import query
from tests.emit.test_producer import read_topic

Place = tuple[str, int, int]


def copies(settings: Settings) -> list[Any]:
    """Return every record of the topic of dead letters; none if it is not there."""
    topic = dead_letter_topic(settings)
    return read_topic(topic) if topic_exists(topic) else []


def told(copy: Any) -> dict[str, bytes]:
    """Return the headers of a copy by name."""
    return dict(copy.headers)


def copied_places(settings: Settings) -> list[Place]:
    """Return where the originals of the copies of this lake's batches stood, sorted; of two copies, twice."""
    batches = {batch_id for (batch_id,) in query(settings, "SELECT batch_id FROM commits")}
    headers = [told(copy) for copy in copies(settings)]
    return sorted(_place(one) for one in headers if one["karmalake.batch_id"].decode() in batches)


def letter_places(settings: Settings) -> list[Place]:
    """Return where the dead letters of the lake stood, sorted."""
    rows = query(settings, 'SELECT topic, topic_partition, "offset" FROM dead_letters')
    return sorted((str(topic), int(partition), int(offset)) for topic, partition, offset in rows)


def _place(headers: dict[str, bytes]) -> Place:
    names = ("karmalake.topic", "karmalake.topic_partition", "karmalake.offset")
    topic, partition, offset = (headers[name].decode() for name in names)
    return topic, int(partition), int(offset)
