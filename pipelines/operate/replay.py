"""A stretch of the topic, read again: into the lake, where it changes nothing, or into a fresh lake beside it.

A fresh lake is compared with that of the settings: what the bus holds now against what was made of it then.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from uuid import uuid4

import duckdb

from pipelines.bus.topics import describe_topic
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import UsageError
from pipelines.ingest.replay import Replay, Stretch, find_stretch
from pipelines.ingest.source import open_source
from pipelines.lake.commit import CommitRecord
from pipelines.lake.history import take_snapshot
from pipelines.lake.kept_tombstones import keep, read_kept, stored
from pipelines.lake.tables import is_lake, open_lake
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import Settings

_COMPARED = files("pipelines").joinpath("replay.sql").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A lake against a fresh one made from a stretch of the topic, in events."""

    same: int
    different: int
    """In both by event_id, with another payload."""
    missing: int
    """In the fresh lake only: the lake lost them."""
    made_up: int
    """In the lake, accepted from within the stretch, and not in the fresh lake."""
    examples: tuple[str, ...]
    """Some event_ids of the last three."""


@contextmanager
def open_replay(
    settings: Settings, start: datetime | Mapping[int, int] | None, until: datetime | None
) -> Generator[Replay]:
    """Yield the stretch of the topic that is to be read again, as `find_stretch` finds it.

    Raises UsageError if there is nothing in it.
    """
    with open_source(settings) as source:
        stretch = find_stretch(source, start, until)
        if not stretch:
            raise UsageError(f"{settings.kafka.topic} holds no records there: nothing to read again")
        yield Replay(source, f"replay-{uuid4().hex}", stretch)


def replay(replayed: Replay, settings: Settings, report: Callable[[CommitRecord], None]) -> int:
    """Commit what the lake of `settings` does not have, calling `report` after each commit; return their number.

    A crash leaves what is committed; replaying again is harmless (`once`).
    """
    with open_ingest_from(replayed, settings) as ingest:
        return drain(ingest, report)


def fresh(settings: Settings, folder: Path) -> Settings:
    """Return settings of a lake in an empty folder, from which those stay out who were erased from the lake.

    Raises UsageError if something is in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: a lake to compare with starts from nothing")
    in_folder = settings.lake.model_copy(update={"uri": None})
    beside = settings.model_copy(update={"data_dir": folder, "lake": in_folder})
    erased = read_kept(settings.tombstones_file) | (
        stored(settings.lake_root) if is_lake(settings.lake_root) else set()
    )
    keep(beside.tombstones_file, erased)
    return beside


def compare(settings: Settings, other: Settings, stretch: Stretch) -> Comparison:
    """Compare the lake of `settings` with the fresh one of `other` that was made from `stretch`."""
    topic = describe_topic(settings.kafka)
    topic_id = topic.topic_id if topic else ""
    with duckdb.connect() as connection:
        for name, each in (("lake", settings), ("fresh", other)):
            connection.execute(f"CREATE SCHEMA {name}; USE {name}")
            create_lake_views(connection, take_snapshot(open_lake(each.lake_root)))
        connection.execute("CREATE TABLE stretch (topic_partition INTEGER, first BIGINT, upto BIGINT)")
        connection.executemany("INSERT INTO stretch VALUES (?, ?, ?)", [(n, *ends) for n, ends in stretch.items()])
        same, different, missing, made_up, examples = connection.execute(_COMPARED, {"topic_id": topic_id}).fetchall()[
            0
        ]
    return Comparison(same, different, missing, made_up, tuple(examples))
