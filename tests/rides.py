"""A foreign topic for tests: rides in JSON, and the source file `rides` that says which events they are.

A ride {"ride", "driver", "rider", "kind", "at"} is one event of the driver; of kind `rated` it is one of the rider,
too; of kind `ping` it is left out. The ids of the events come from the `id` of the ride, or else from its place.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines.bus.topics import ensure_topic
from pipelines.emit.producer import Record
from pipelines.settings import Settings
from tests.draining import NOON, with_ingest

_SOURCE = '''
topic = "{topic}"
format = "json"
time_unit = "s"
select = """
SELECT
    coalesce(id, concat_ws('/', topic, topic_partition, "offset")) || '/0' AS event_id, driver AS user_id,
    kind AS action_type, "at" AS timestamp, {{'ride': ride}} AS metadata
FROM record
WHERE kind <> 'ping'
UNION ALL
SELECT coalesce(id, concat_ws('/', topic, topic_partition, "offset")) || '/1', rider, kind, "at", {{'ride': ride}}
FROM record
WHERE kind = 'rated'
"""

[columns]
id = "VARCHAR"
ride = "VARCHAR"
driver = "VARCHAR"
rider = "VARCHAR"
kind = "VARCHAR"
at = "VARCHAR"
'''


def ride(number: int, kind: str = "rated", **more: Any) -> Record:
    """Return a ride of one of five drivers and one of three riders."""
    driver, rider = f"driver-{number % 5}", f"u-{number % 3}"
    fields = {"ride": f"r-{number}", "driver": driver, "rider": rider, "kind": kind, "at": NOON.timestamp() + number}
    return Record(b"ride", json.dumps(fields | more).encode())


def rides(numbers: Iterable[int]) -> list[Record]:
    """Return rides: of ten, five are rated, three are driven, one is a ping, and one is no ride."""
    kinds = ["rated"] * 5 + ["driven"] * 3 + ["ping"]
    return [ride(n, kinds[n % 10]) if n % 10 < 9 else raw(b"{no ride %d" % n) for n in numbers]


def raw(value: bytes) -> Record:
    """Return a record of any value."""
    return Record(b"ride", value)


def rides_topic(settings: Settings) -> str:
    """Return the name of the topic of rides beside that of events."""
    return f"{settings.kafka.topic}-rides"


def to_rides(settings: Settings) -> Settings:
    """Return settings whose own topic is that of rides, to send to it."""
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"topic": rides_topic(settings)})})


def with_rides(settings: Settings, folder: Path) -> Settings:
    """Write the source file into a folder of sources; return settings with this folder."""
    folder.mkdir(exist_ok=True)
    (folder / "rides.toml").write_text(_SOURCE.format(topic=rides_topic(settings)))
    return settings.model_copy(update={"sources": settings.sources.model_copy(update={"folder": folder})})


def rides_source(settings: Settings) -> Path:
    """Return the path of the source file."""
    assert settings.sources.folder
    return settings.sources.folder / "rides.toml"


def edit_source(settings: Settings, old: str, new: str) -> None:
    """Replace a part of the source file: it is another source from then on."""
    path = rides_source(settings)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def both(settings: Settings, tmp_path: Path) -> Settings:
    """Return settings that ingest events of our own contract and rides, both topics of two partitions."""
    settings = with_ingest(settings)
    two = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 2})})
    ensure_topic(two.kafka)
    ensure_topic(to_rides(two).kafka)
    return with_rides(two, tmp_path / "sources")
