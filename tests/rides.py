"""A second source for tests: rides as JSON under names of its own, decoded without the code of mappings.

A ride {"ride", "driver", "rider", "kind", "at"} is one event of the driver; of kind `rated` it is one of the rider,
too; of kind `ping` it is left out. The ids of the events are derived from the place of the record.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from pipelines.contract.decode import Decoded, Decoder
from pipelines.contract.schema import EVENT, POSITION, REJECTED
from pipelines.emit.producer import Record
from pipelines.settings import Settings
from tests.draining import NOON

_PLACES = pa.schema([*EVENT, *POSITION])


@dataclass(frozen=True, slots=True)
class Rides:
    """The source file `rides`."""

    topics: tuple[str, ...]
    digest: str = "0" * 32
    name: str = "rides"


def decode_rides(records: pa.Table, _now: datetime | None = None) -> Decoded:
    """Decode rides, each record by itself."""
    fates: dict[str, list[dict[str, Any]]] = {"events": [], "filtered": [], "rejected": []}
    for row in records.to_pylist():
        try:
            events = list(_events(row))
        except (ValueError, KeyError, TypeError) as error:
            fates["rejected"].append(row | {"reason": "undecodable", "detail": f"no ride: {error!r}"})
            continue
        fates["events" if events else "filtered"] += events or [row]
    events = pa.Table.from_pylist(fates["events"], _PLACES)
    filtered = pa.Table.from_pylist(
        [{name: row[name] for name in POSITION.names} for row in fates["filtered"]], POSITION
    )
    mis_keyed = pa.array([False] * len(events), pa.bool_())
    return Decoded(events, pa.Table.from_pylist(fates["rejected"], REJECTED), mis_keyed, filtered)


def _events(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ride = json.loads(row["value"])
    place = {name: row[name] for name in POSITION.names}
    time = datetime.fromtimestamp(ride["at"], UTC)
    users = {"ping": (), "rated": (ride["driver"], ride["rider"])}.get(ride["kind"], (ride["driver"],))
    for number, user in enumerate(users):
        event_id = ride.get("id") or f"{row['topic_id']}/{row['topic_partition']}/{row['offset']}"
        yield place | {
            "event_id": f"{event_id}/{number}", "user_id": user, "action_type": ride["kind"],
            "event_time": time, "metadata": [("ride", ride["ride"])],
        }  # fmt: skip


def ride(number: int, kind: str = "rated", **more: Any) -> Record:
    """Return a ride of one of five drivers and one of three riders."""
    driver, rider = f"driver-{number % 5}", f"u-{number % 3}"
    fields = {"ride": f"r-{number}", "driver": driver, "rider": rider, "kind": kind, "at": NOON.timestamp() + number}
    return Record(b"ride", json.dumps(fields | more).encode())


def rides(numbers: Iterable[int]) -> list[Record]:
    """Return rides: of ten, five are rated, three are driven, one is a ping, and one is no ride."""
    kinds = ["rated"] * 5 + ["driven"] * 3 + ["ping"]
    return [ride(n, kinds[n % 10]) if n % 10 < 9 else Record(b"ride", b"{no ride %d" % n) for n in numbers]


def of_topic(settings: Settings, topic: str) -> Settings:
    """Return settings with another topic, to send to it."""
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"topic": topic})})


def rides_topic(settings: Settings) -> str:
    """Return the name of the topic of rides beside that of events."""
    return f"{settings.kafka.topic}-rides"


def with_rides(settings: Settings, folder: Any = "sources") -> Settings:
    """Return settings with a folder of source files."""
    return settings.model_copy(update={"sources": settings.sources.model_copy(update={"folder": folder})})


def add_rides(patch: pytest.MonkeyPatch, settings: Settings, digest: str = "0" * 32) -> None:
    """Make `rides` a source file of these settings."""
    source = Rides((rides_topic(settings),), digest)

    @contextmanager
    def opened(_source: object, _settings: Settings) -> Generator[Decoder]:
        yield decode_rides

    patch.setattr("pipelines.ingest.sources.read_sources", lambda _folder: (source,))
    patch.setattr("pipelines.ingest.sources.open_mapping", opened)
