"""What the present text of a source makes of the records that the lake has from it, beside what the lake has."""

import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import duckdb

from pipelines.backfill import load, open_input
from pipelines.errors import UsageError
from pipelines.ingest.filling import without_waiting
from pipelines.ingest.kafka import open_source
from pipelines.ingest.replay import Range, ReplayOffsets, ReplaySource, replay_source
from pipelines.inputs import find_files, local_file
from pipelines.lake.checkpoints import checkpoint
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.mapping.source_files import SourceFile
from pipelines.operate.replay import Comparison, compare_places, fresh, replay
from pipelines.operate.replayed import create_view_of_replays
from pipelines.preview import unlimited
from pipelines.reputation.lake_views import open_lake_views
from pipelines.settings import Settings

_Found = TypeVar("_Found")
_FATES_SQL = files("pipelines.operate").joinpath("source_diff.sql").read_text(encoding="utf-8")
_CREATE_PLACES = """
CREATE TEMP TABLE places (topic_id VARCHAR, topic_partition INTEGER, start_offset BIGINT, end_offset BIGINT)
"""
_LOADS = """
SELECT topic_id, topic_partition, min(start_offset), max(next_offset)
FROM (SELECT unnest(ranges, recursive := true) FROM (SELECT ranges FROM commits))
WHERE topic = ? AND source = ?
GROUP BY ALL
"""
_READ_RANGES = """
SELECT topic_id, topic_partition, min(start_offset), max(next_offset), sum("read")::BIGINT
FROM (SELECT unnest(ranges, recursive := true) FROM (SELECT ranges FROM commits))
GROUP BY ALL
"""
_FATES = ("events", "conflicts", "dead letters", "filtered or duplicate")


@dataclass(frozen=True, slots=True)
class SourceDiff:
    """The lake beside what the source makes of the same records now.

    `comparison.missing` events would be new, `extra` ones are not made any more, `different` ones are others.
    """

    records: int
    """Records, or rows of files, that were read again."""
    comparison: Comparison
    fates: tuple[tuple[str, int, int], ...]
    """Fate, and its count before and after."""


def diff_source(settings: Settings, source: SourceFile, sample: int | None = None) -> SourceDiff:
    """Read what the lake has from a source again, and compare; commit nothing to the lake.

    With `sample`, about the last so many records of each topic. Raises UsageError if the lake has nothing from it.
    """
    with _fresh(settings) as other:
        places = _load_files(settings, other, source) if source.files else _replay(settings, other, source, sample)
        if not places:
            raise UsageError(
                f"the lake has nothing from the source {source.name}: `karmalake sources check {source.name}` shows "
                "what would come of it"
            )
        read, loaded = _query(other, _read_ranges)
        before, after = _fates(settings, places, read), _fates(other, loaded, read)
        rows = tuple(zip(_FATES, before, after, strict=True))
        return SourceDiff(read, compare_places(settings, other, places), rows)


@contextmanager
def _fresh(settings: Settings) -> Generator[Settings]:
    with tempfile.TemporaryDirectory(prefix="karmalake-") as folder:
        yield unlimited(fresh(settings, Path(folder) / "fresh"))


def _replay(settings: Settings, other: Settings, source: SourceFile, sample: int | None) -> list[Range]:
    """Read the topics of a source up to the lake's checkpoints into a fresh lake; return the ranges."""
    with open_source(without_waiting(settings), topics=source.topics) as opened:
        replayed = replay_source(opened, None, None)
        if replayed is None:
            return []
        replayed.offsets = _read_before(settings, replayed, sample)
        if replayed.offsets:
            replay(replayed, other, lambda _: None)
        return replayed.places()


def _read_before(settings: Settings, replayed: ReplaySource, sample: int | None) -> ReplayOffsets:
    """Return the offsets before the lake's checkpoints; with `sample`, the last of them."""
    events = open_lake(settings.lake_root).table("events")
    most = -(-sample // max(1, len(replayed.offsets))) if sample else None
    found: ReplayOffsets = {}
    for tp, (start, end) in replayed.offsets.items():
        read = checkpoint(events, replayed.replayed_ids[tp.topic], tp.partition) or 0
        end = min(end, read)  # noqa: PLW2901 - the end of what was read
        start = max(start, end - most) if most else start  # noqa: PLW2901
        if start < end:
            found[tp] = (start, end)
    return found


def _load_files(settings: Settings, other: Settings, source: SourceFile) -> list[Range]:
    """Load the files of a source that the lake has into a fresh lake; return the ranges of their earlier loads."""
    places: list[Range] = []
    for address in find_files(source.addresses()):
        with local_file(address) as file:
            opened = open_input(file, source, other)
            loads = _query(settings, lambda connection, topic=opened.topic: _loads(connection, topic, source.name))
            if loads:
                load(other, opened, lambda _: None)
            places += loads
    return places


def _loads(connection: duckdb.DuckDBPyConnection, topic: str, name: str) -> list[Range]:
    return connection.execute(_LOADS, [topic, name]).fetchall()


def _read_ranges(connection: duckdb.DuckDBPyConnection) -> tuple[int, list[Range]]:
    """Return the number of records that a lake was made of, and their ranges."""
    rows = connection.execute(_READ_RANGES).fetchall()
    return sum(row[-1] for row in rows), [row[:-1] for row in rows]


def _fates(settings: Settings, places: Sequence[Range], read: int) -> tuple[int, ...]:
    """Return the counts of _FATES of what a lake has at places of `read` records."""

    def count(connection: duckdb.DuckDBPyConnection) -> tuple[int, ...]:
        create_view_of_replays(connection)
        connection.execute(_CREATE_PLACES)
        connection.executemany("INSERT INTO places VALUES (?, ?, ?, ?)", places)
        (found,) = connection.execute(_FATES_SQL).fetchall()
        return found

    *counts, records = _query(settings, count)
    return (*counts, max(0, read - records))


def _query(settings: Settings, ask: Callable[[duckdb.DuckDBPyConnection], _Found]) -> _Found:
    with open_lake_views(take_snapshot(open_lake(settings.lake_root))) as connection:
        return ask(connection)
