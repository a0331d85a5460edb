"""Replay of a range of the topics: into the lake, which drops what it has, or into a fresh lake to compare with.

The comparison shows where the lake differs from what the topics hold now.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from pipelines.boundary.database import connect
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import UsageError
from pipelines.ingest.filling import without_waiting
from pipelines.ingest.kafka import open_source
from pipelines.ingest.replay import Range, ReplaySource, replay_source
from pipelines.ingest.sources import topic_sources
from pipelines.lake.commit import CommitRecord
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import is_lake, open_lake
from pipelines.lake.tombstone_file import append_tombstones, lake_tombstones, read_tombstones
from pipelines.operate.replayed import create_view_of_replays
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import Settings

_CREATE_REPLAYED = """
CREATE TABLE replayed (topic_id VARCHAR, topic_partition INTEGER, start_offset BIGINT, end_offset BIGINT)
"""
_COMPARE_SQL = files("pipelines.operate").joinpath("replay.sql").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A lake compared with a fresh one, replayed from a range of the topic; counts of events."""

    same: int
    different: int
    """In both by event_id, with different payloads."""
    missing: int
    """In the fresh lake only: lost by the lake."""
    extra: int
    """In the lake only, although their offsets are within the range."""
    examples: tuple[str, ...]
    """Some event_ids that are different, missing or extra."""
    fields: str = field(default="", compare=False)
    """The fields that differ in the first one that is different, with both values."""
    first: Mapping[str, str | None] = field(default_factory=dict[str, str | None], compare=False)
    """The first event_id that is different, missing and extra."""


@contextmanager
def open_replay(
    settings: Settings,
    start: datetime | Mapping[int, int] | None,
    until: datetime | None,
    topic: str | None = None,
) -> Generator[ReplaySource]:
    """Yield the source of a replay: the range that `find_replay_offsets` returns, of one topic or of all.

    Raises UsageError if the range is empty, or the topic is not ingested.
    """
    topics = topic_sources(settings)
    if topic is not None and topic not in topics:
        raise UsageError(f"the topic {topic} is not ingested: name one of {', '.join(topics)}")
    with open_source(without_waiting(settings), topics=[topic] if topic else ()) as source:
        replayed = replay_source(source, start, until)
        if replayed is None:
            raise UsageError(f"{', '.join(source.topics)} holds no records in that range: nothing to replay")
        yield replayed


def replay(replayed: ReplaySource, settings: Settings, report: Callable[[CommitRecord], None]) -> int:
    """Commit the replayed records that the lake of `settings` lacks; return the number of commits.

    Calls `report` after each commit. A crash keeps what was committed; replaying again is harmless (`once`).
    """
    with open_ingest_from(replayed, settings) as ingest:
        return drain(ingest, report)


def fresh(settings: Settings, folder: Path) -> Settings:
    """Return settings of a lake in an empty folder that also excludes the erased users of the current lake.

    Raises UsageError if the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name an empty or new folder for the fresh lake")
    in_folder = settings.lake.model_copy(update={"uri": None})
    fresh_settings = settings.model_copy(update={"data_dir": folder, "lake": in_folder})
    erased = read_tombstones(settings.tombstones_file) | (
        lake_tombstones(settings.lake_root) if is_lake(settings.lake_root) else set()
    )
    append_tombstones(fresh_settings.tombstones_file, erased)
    return fresh_settings


def compare(settings: Settings, other: Settings, replayed: ReplaySource) -> Comparison:
    """Compare the lake of `settings` with the fresh one of `other` that a replay filled."""
    return compare_places(settings, other, replayed.places())


def compare_places(settings: Settings, other: Settings, places: Sequence[Range]) -> Comparison:
    """Compare what the lake of `settings` has from ranges of topics with the fresh one of `other`, read from them."""
    with connect() as connection:
        for name, each in (("lake", settings), ("fresh", other)):
            connection.execute(f"CREATE SCHEMA {name}; USE {name}")
            create_lake_views(connection, take_snapshot(open_lake(each.lake_root)))
        create_view_of_replays(connection, "lake")
        connection.execute(_CREATE_REPLAYED)
        connection.executemany("INSERT INTO replayed VALUES (?, ?, ?, ?)", places)
        [(same, different, missing, extra, examples, *first)] = connection.execute(_COMPARE_SQL).fetchall()
    return Comparison(same, different, missing, extra, tuple(examples), *first)
