"""Dead letters after they were written: list, requeue once the contract or its bounds are fixed, or discard.

The fate of each is appended to the table `fates`, never overwritten. A requeued event keeps its event_id, so it counts
once, however often it is requeued or sent again (`once`).
"""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.boundary.toml import abbreviate
from pipelines.contract.schema import RECORD
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import UsageError
from pipelines.ingest.replay import PREFIX
from pipelines.ingest.requeue import DeadLetterSource
from pipelines.ingest.sources import CONTRACT, IngestedTopic, open_source_decoder
from pipelines.lake.commit import CommitRecord, append_file
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.dead_letter_rows import batches_by_row_group, read_dead_letter_rows
from pipelines.lake.tables import FATES, Snapshot, open_lake
from pipelines.operate.replayed import create_view_of_replays
from pipelines.reputation.lake_views import open_lake_views
from pipelines.settings import Settings

_FROM_SELECTED = """
FROM dead_letters
JOIN commits USING (batch_id)
WHERE
    fate = coalesce($fate, fate)
    AND reason = coalesce($reason, reason)
    AND ($topic IS NULL OR (topic = $topic AND topic_partition = $topic_partition AND "offset" = $offset))
"""
_KEY = ["batch_id", "topic_id", "topic_partition", "offset"]
"""What identifies a dead letter."""
_LETTERS = f"SELECT dead_letters.* {_FROM_SELECTED}"
_OLDEST_FIRST = 'ORDER BY commits.version, topic_id, topic_partition, "offset"'  # not by bus time, which producers set
_NEWEST = (
    f'SELECT topic, topic_partition, "offset", reason, detail, fate {_FROM_SELECTED} '
    'ORDER BY commits.version DESC, topic_id DESC, topic_partition DESC, "offset" DESC LIMIT $limit'
)
_FATES = (
    f'SELECT batch_id, topic_id, topic_partition, "offset", bus_time, fate, dead_letters.note, decided {_FROM_SELECTED}'
)
_COUNTS = f"SELECT reason, fate, count(*)::BIGINT AS records {_FROM_SELECTED} GROUP BY ALL ORDER BY ALL"
_POSITIONS = f'SELECT topic_id, topic_partition, "offset", batch_id {_FROM_SELECTED}'
_SOURCES = """
SELECT DISTINCT batch_id, topic_id, source
FROM (SELECT batch_id, unnest(ranges, recursive := true) FROM (SELECT batch_id, ranges FROM commits))
WHERE dead_letters > 0 AND source <> 'contract' AND NOT starts_with(topic, 'file:')
"""
_ACCEPTED_LATER = """
SELECT dead_letters.topic_id, dead_letters.topic_partition, dead_letters."offset", dead_letters.batch_id
FROM dead_letters
JOIN events
    ON events.topic_id = $topic_id
    AND events."offset" = dead_letters."offset"
    AND events.user_id = decode(dead_letters."key")
WHERE dead_letters.topic = $topic AND dead_letters.topic_id <> $topic_id AND fate = 'open'
"""
_OF_WITHDRAWN = """
SELECT topic_id, topic_partition, "offset", batch_id
FROM dead_letters
SEMI JOIN withdrawn USING (batch_id, topic_id)
WHERE fate = 'open'
"""
_PLACE = re.compile(r"(.+)-([0-9]{1,9})@([0-9]{1,18})", re.DOTALL)
_MAX_COMMIT_RECORDS = 100_000
_MAX_BYTES = 64 * 1024 * 1024
Fate = Literal["open", "requeued", "discarded"]


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter of dead letters: fate, reason code, place (`topic-partition@offset`); None matches any."""

    fate: Fate | None = "open"
    reason: str | None = None
    place: str | None = None


class Count(NamedTuple):
    """The number of dead letters of one reason and fate."""

    reason: str
    fate: Fate
    records: int


@dataclass(frozen=True, slots=True)
class Requeued:
    """The outcome of a requeue, in records."""

    accepted: int
    duplicates: int
    conflicts: int
    still_rejected: int
    filtered: int = 0
    """Records that their source leaves out by now."""


def select(settings: Settings, selection: Selection) -> pa.Table:
    """Return dead letters, oldest first: REJECTED columns, batch_id, and `fate`, `note`, `decided`.

    Loads all of them into memory; use `stream_dead_letters` for many. Raises UsageError if there is no lake or the
    place is malformed.
    """
    with _open_views(settings) as connection:
        return connection.sql(f"{_LETTERS} {_OLDEST_FIRST}", params=_parameters(selection)).to_arrow_table()


def stream_dead_letters(settings: Settings, selection: Selection) -> Iterator[pa.Table]:
    """Yield the columns of `select` in batches, unordered; the first batch is empty.

    A batch has at most 256 dead letters and 16 MiB, or one dead letter: a few kilobytes of a topic may decompress to
    128 MiB. Memory is that of one batch, in about 16 copies with those of libraries and callers, and of place and fate
    of all selected ones (about 150 bytes each). Files of earlier releases have larger row groups, so that a batch may
    hold several large dead letters of one commit. Raises like `select`.
    """
    lake = open_lake(settings.lake_root)
    snapshot, parameters = take_snapshot(lake), _parameters(selection)
    with _open_snapshot(snapshot) as connection:
        schema = connection.sql(f"{_LETTERS} LIMIT 0", params=parameters).to_arrow_table().schema
        fates = connection.sql(_FATES, params=parameters).pl().partition_by("batch_id", as_dict=True)
    selected = {str(batch_id): found for (batch_id,), found in fates.items()}
    yield schema.empty_table()
    for path in snapshot.files.get("dead_letters", ()) if selected else ():
        yield from _read_selected(path, selected, schema)


def _read_selected(path: str, selected: dict[str, pl.DataFrame], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the selected dead letters of a file; `selected` has their places and fates by batch_id."""
    for group, batch_ids in batches_by_row_group(path).items():
        wanted = batch_ids & selected.keys()
        if wanted:
            fates = pl.concat([selected[batch_id] for batch_id in wanted])
            found = (_with_fates(rows, fates, schema) for rows in read_dead_letter_rows(group, wanted))
            yield from filter(len, found)


def _with_fates(rows: pa.Table, fates: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """Return the rows that have a fate, with its columns."""
    keys = pl.DataFrame(rows.select(_KEY)).with_row_index("row")
    found = keys.join(fates, on=_KEY, how="inner", maintain_order="left")
    taken = rows if len(found) == len(rows) else rows.take(found["row"].to_arrow())
    decided = found.to_arrow()
    columns = [(decided if name in found.columns else taken)[name] for name in schema.names]
    return pa.table(columns, names=schema.names).cast(schema)


def count_dead_letters(settings: Settings, selection: Selection) -> list[Count]:
    """Return the number of dead letters by reason and fate. Raises like `select`."""
    with _open_views(settings) as connection:
        return [Count(*row) for row in connection.execute(_COUNTS, _parameters(selection)).fetchall()]


def newest_dead_letters(settings: Settings, selection: Selection, limit: int) -> list[dict[str, Any]]:
    """Return place, reason, detail and fate of the newest dead letters, oldest first. Raises like `select`."""
    with _open_views(settings) as connection:
        found = connection.sql(_NEWEST, params=_parameters(selection) | {"limit": limit})
        return found.to_arrow_table().to_pylist()[::-1]


def requeue(settings: Settings, selection: Selection) -> Requeued:
    """Decode the selected dead letters again by their sources as they are now, and commit those that are valid.

    The others stay open. A crash leaves each either open or committed; requeuing again is harmless (`once`). Raises
    UsageError if a source does not exist any more.
    """
    records: list[CommitRecord] = []
    selected = valid = 0
    with _open_views(settings) as connection:
        sources = connection.sql(_SOURCES).pl()
        create_view_of_replays(connection)
        topic_ids = dict(connection.execute("FROM replays").fetchall())
    for letters in _commit_sized(stream_dead_letters(settings, selection)):
        selected += len(letters)
        for name, of_source in _by_source(letters, sources):
            with open_source_decoder(settings, name) as source:
                valid += _requeue(settings, source, of_source, topic_ids, records.append)
    names = ("accepted", "duplicates", "conflicts", "filtered")
    counts = {name: sum(record.total(name) for record in records) for name in names}
    return Requeued(**counts, still_rejected=selected - valid)


def _requeue(
    settings: Settings,
    source: IngestedTopic,
    letters: pa.Table,
    topic_ids: dict[str, str],
    report: Callable[[CommitRecord], None],
) -> int:
    """Commit those dead letters of a source, each of another place, that are valid now; return their number."""
    requeue_id, records = f"requeue-{uuid4().hex}", _as_read(letters.select(RECORD.names), topic_ids)
    is_valid = DeadLetterSource(records, requeue_id, source).valid()
    valid = records.filter(is_valid)
    if len(valid):
        _record_fate(settings, letters.filter(is_valid), "requeued", "", requeue_id)
        valid_source, opening = DeadLetterSource(valid, requeue_id, source), partial(open_lake, settings.lake_root)
        with open_ingest_from(valid_source, settings, opening=opening) as ingest:
            drain(ingest, report)
    return len(valid)


def _by_source(letters: pa.Table, sources: pl.DataFrame) -> Iterator[tuple[str, pa.Table]]:
    """Yield dead letters by the name of their source; those of one place, from several reads of a log, one by one."""
    rows = pl.DataFrame(letters.select(_KEY)).join(
        sources, on=["batch_id", "topic_id"], how="left", maintain_order="left"
    )
    numbered = rows.with_columns(
        pl.col("source").fill_null(CONTRACT),
        pl.int_range(pl.len()).over("topic_id", "topic_partition", "offset").alias("read"),
    ).with_row_index("row")
    for (name, _), group in numbered.group_by("source", "read", maintain_order=True):
        yield str(name), letters.take(group["row"].to_arrow())


def _as_read(records: pa.Table, topic_ids: dict[str, str]) -> pa.Table:
    """Return records with the places that they had first: those of a replay have its topic, and its topic id."""
    original = pl.DataFrame(records.select(["topic_id", "topic"])).with_columns(
        pl.col("topic").str.strip_prefix(PREFIX), pl.col("topic_id").replace(topic_ids)
    )
    arrow = original.to_arrow().cast(records.select(["topic_id", "topic"]).schema)
    return pa.table([arrow[name] if name in arrow.column_names else records[name] for name in RECORD.names], RECORD)


def discard(settings: Settings, selection: Selection, why: str) -> int:
    """Mark the selected dead letters as discarded, with a reason; return their number. Their bytes stay in the lake.

    Raises UsageError without a reason.
    """
    if not why.strip():
        raise UsageError("give the reason (--why) for discarding the dead letters; it is recorded with them")
    with _open_views(settings) as connection:
        letters = connection.sql(_POSITIONS, params=_parameters(selection)).to_arrow_table()
    if len(letters):
        _record_fate(settings, letters, "discarded", why, None)
    return len(letters)


def close_accepted(settings: Settings, loads: Sequence[tuple[str, str]]) -> int:
    """Discard the open dead letters of earlier loads of files whose rows are accepted now; return their number.

    `loads` are topic_id and topic of the newest load of each file: a row is known by its number and its user.
    """
    if not loads:
        return 0
    with _open_views(settings) as connection:
        of_loads = ({"topic_id": topic_id, "topic": topic} for topic_id, topic in loads)
        found = pa.concat_tables([connection.sql(_ACCEPTED_LATER, params=load).to_arrow_table() for load in of_loads])
    if len(found):
        _record_fate(settings, found, "discarded", "its row was accepted when the file was loaded again", None)
    return len(found)


def close_withdrawn(settings: Settings) -> int:
    """Discard the open dead letters of loads that were withdrawn; return their number."""
    with _open_views(settings) as connection:
        found = connection.sql(_OF_WITHDRAWN).to_arrow_table()
    if len(found):
        _record_fate(settings, found, "discarded", "its load was withdrawn", None)
    return len(found)


@contextmanager
def _open_views(settings: Settings) -> Generator[duckdb.DuckDBPyConnection]:
    with _open_snapshot(take_snapshot(open_lake(settings.lake_root))) as connection:
        yield connection


@contextmanager
def _open_snapshot(snapshot: Snapshot) -> Generator[duckdb.DuckDBPyConnection]:
    with open_lake_views(snapshot) as connection:
        connection.execute("SET threads = 1")  # each thread reads hundreds of MB ahead if letters are large
        yield connection


def _parameters(selection: Selection) -> dict[str, Any]:
    """Return the bound parameters of the statements."""
    topic = topic_partition = offset = None
    if selection.place is not None:
        found = _PLACE.fullmatch(selection.place)
        if found is None or not _is_text(selection.place):
            raise UsageError(
                f"{abbreviate(selection.place)!r} is not a place: write it like {'events-0@17'!r}, as `list` shows it"
            )
        topic, topic_partition, offset = found[1], int(found[2]), int(found[3])
    return {
        "fate": selection.fate,
        "reason": selection.reason,
        "topic": topic,
        "topic_partition": topic_partition,
        "offset": offset,
    }


def _is_text(place: str) -> bool:
    """Return whether a place is valid UTF-8: a command line may contain other bytes, a topic name may not."""
    return not any("\ud800" <= character <= "\udfff" for character in place)


def _commit_sized(letters: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Group dead letters into chunks of a commit's size, each in bus order."""
    chunk: list[pa.Table] = []
    for batch in letters:
        chunk.append(batch)
        if sum(map(len, chunk)) >= _MAX_COMMIT_RECORDS or sum(table.nbytes for table in chunk) >= _MAX_BYTES:
            yield _in_bus_order(chunk)
            chunk = []
    if chunk:
        yield _in_bus_order(chunk)


def _in_bus_order(chunk: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(chunk).sort_by([(name, "ascending") for name in ("topic_id", "topic_partition", "offset")])


def _record_fate(settings: Settings, letters: pa.Table, fate: Fate, note: str, requeue_id: str | None) -> None:
    """Append the fate of dead letters; `requeued` takes effect once their batch is committed."""
    count = len(letters)
    decided = {
        "fate": pa.repeat(pa.scalar(fate), count),
        "note": pa.repeat(pa.scalar(note), count),
        "decided": pa.repeat(pa.scalar(datetime.now(UTC), FATES.field("decided").type), count),
        "requeue_id": pa.repeat(pa.scalar(requeue_id, pa.string()), count),
    }
    columns = [decided[name] if name in decided else letters[name] for name in FATES.names]
    rows = pa.table(columns, names=FATES.names).cast(FATES)
    append_file(open_lake(settings.lake_root), "fates", rows, uuid4().hex)
