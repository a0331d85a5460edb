"""Replay of a range of the topic: into the lake, which drops what it has, or into a fresh lake to compare with.

The comparison shows where the lake differs from what the topic holds now.
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
from pipelines.ingest.filling import without_waiting
from pipelines.ingest.kafka import open_source
from pipelines.ingest.replay import ReplayOffsets, ReplaySource, find_replay_offsets
from pipelines.lake.commit import CommitRecord
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import is_lake, open_lake
from pipelines.lake.tombstone_file import append_tombstones, lake_tombstones, read_tombstones
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import Settings

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


@contextmanager
def open_replay(
    settings: Settings, start: datetime | Mapping[int, int] | None, until: datetime | None
) -> Generator[ReplaySource]:
    """Yield the source of a replay: the range that `find_replay_offsets` returns.

    Raises UsageError if the range is empty.
    """
    with open_source(without_waiting(settings)) as source:
        offsets = find_replay_offsets(source, start, until)
        if not offsets:
            raise UsageError(f"{settings.kafka.topic} holds no records in that range: nothing to replay")
        yield ReplaySource(source, f"replay-{uuid4().hex}", offsets)


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


def compare(settings: Settings, other: Settings, offsets: ReplayOffsets) -> Comparison:
    """Compare the lake of `settings` with the fresh one of `other` that was replayed from `offsets`."""
    topic = describe_topic(settings.kafka)
    topic_id = topic.topic_id if topic else ""
    with duckdb.connect() as connection:
        for name, each in (("lake", settings), ("fresh", other)):
            connection.execute(f"CREATE SCHEMA {name}; USE {name}")
            create_lake_views(connection, take_snapshot(open_lake(each.lake_root)))
        connection.execute("CREATE TABLE replayed (topic_partition INTEGER, start_offset BIGINT, end_offset BIGINT)")
        connection.executemany("INSERT INTO replayed VALUES (?, ?, ?)", [(n, *ends) for n, ends in offsets.items()])
        same, different, missing, extra, examples = connection.execute(_COMPARE_SQL, {"topic_id": topic_id}).fetchall()[
            0
        ]
    return Comparison(same, different, missing, extra, tuple(examples))
