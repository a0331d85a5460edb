"""The life of a dead letter after it was written: looked at, requeued once contract or bounds are mended, or discarded.

What became of each is appended to the table `fates`, never overwritten. A requeued event keeps its event_id, so it
counts once, however often it is requeued or sent again (`once`).
"""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import duckdb
import pyarrow as pa

from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import UsageError
from pipelines.ingest.requeue import KeptRecords
from pipelines.lake.commit import CommitRecord, append_file
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import FATES, open_lake
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import Settings

_SELECTED = """
FROM dead_letters
JOIN commits USING (batch_id)
WHERE
    fate = coalesce($fate, fate)
    AND reason = coalesce($reason, reason)
    AND ($topic IS NULL OR (topic = $topic AND topic_partition = $topic_partition AND "offset" = $offset))
"""
_LETTERS = f"SELECT dead_letters.* {_SELECTED}"
_OLDEST_FIRST = 'ORDER BY commits.version, topic_id, topic_partition, "offset"'  # no producer's clock decides
_NEWEST = (
    f'SELECT topic, topic_partition, "offset", reason, detail, fate {_SELECTED} '
    'ORDER BY commits.version DESC, topic_id DESC, topic_partition DESC, "offset" DESC LIMIT $limit'
)
_LARGEST = f"SELECT max(octet_length(value))::BIGINT {_SELECTED}"
_COUNTS = f"SELECT reason, fate, count(*)::BIGINT AS records {_SELECTED} GROUP BY ALL ORDER BY ALL"
_DECIDED = f'SELECT topic_id, topic_partition, "offset", batch_id {_SELECTED}'
_PLACE = re.compile(r"(.+)-([0-9]{1,9})@([0-9]{1,18})", re.DOTALL)
_ROWS = 1_000
"""Dead letters that are in memory at a time."""
_MOST_AT_ONCE = 100_000
_MOST_BYTES = 64 * 1024 * 1024
Fate = Literal["open", "requeued", "discarded"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: by fate, by reason code, by place (`topic-partition@offset`); None means any."""

    fate: Fate | None = "open"
    reason: str | None = None
    place: str | None = None


class Count(NamedTuple):
    """How many dead letters have a reason and a fate."""

    reason: str
    fate: Fate
    records: int


@dataclass(frozen=True, slots=True)
class Requeued:
    """What a requeue did, in records."""

    accepted: int
    duplicates: int
    conflicts: int
    still_rejected: int


def select(settings: Settings, selection: Selection) -> pa.Table:
    """Return dead letters, oldest first: REJECTED columns, batch_id, and `fate`, `note`, `decided`.

    All of them are in memory: `stream_letters` is for many. Raises UsageError when there is no lake, or for a place
    that is written otherwise.
    """
    with _views(settings) as connection:
        return connection.sql(f"{_LETTERS} {_OLDEST_FIRST}", params=_values(selection)).to_arrow_table()


def stream_letters(settings: Settings, selection: Selection) -> Iterator[pa.Table]:
    """Yield the columns of `select`, at first of no dead letter, then of a thousand at a time, in no order.

    Fewer where they are large: a few kilobytes of a topic may be a dead letter of 128 MiB. Errors as `select` has them.
    """
    with _views(settings) as connection:
        [(largest,)] = connection.execute(_LARGEST, _values(selection)).fetchall()
        rows = max(1, min(_ROWS, _MOST_BYTES // max(1, largest or 0)))
        reader = connection.sql(_LETTERS, params=_values(selection)).to_arrow_reader(rows)
        yield reader.schema.empty_table()
        for batch in reader:
            yield pa.Table.from_batches([batch])


def count_letters(settings: Settings, selection: Selection) -> list[Count]:
    """Return how many dead letters there are of each reason and fate; errors as `select` has them."""
    with _views(settings) as connection:
        return [Count(*row) for row in connection.execute(_COUNTS, _values(selection)).fetchall()]


def newest_letters(settings: Settings, selection: Selection, limit: int) -> list[dict[str, Any]]:
    """Return place, reason, detail and fate of the newest dead letters, oldest first; errors as `select` has them."""
    with _views(settings) as connection:
        found = connection.sql(_NEWEST, params=_values(selection) | {"limit": limit})
        return found.to_arrow_table().to_pylist()[::-1]


def requeue(settings: Settings, selection: Selection) -> Requeued:
    """Decode the selected dead letters again, by the contract as it is now, and commit those that are events.

    The others stay as they are. A crash leaves them open, or committed: requeuing again is harmless (`once`).
    """
    records: list[CommitRecord] = []
    still_rejected = 0
    for letters in _shares(stream_letters(settings, selection)):
        valid = _valid(letters, settings)
        still_rejected += len(letters) - len(valid)
        if len(valid):
            requeue_id = f"requeue-{uuid4().hex}"
            _decide(settings, valid, "requeued", "", requeue_id)
            source = KeptRecords(valid.select(RECORD.names), requeue_id, settings.contract)
            with open_ingest_from(source, settings) as ingest:
                drain(ingest, records.append)
    counts = {name: sum(record.total(name) for record in records) for name in ("accepted", "duplicates", "conflicts")}
    return Requeued(**counts, still_rejected=still_rejected)


def discard(settings: Settings, selection: Selection, why: str) -> int:
    """Record that the selected dead letters are given up, and why; return their number. Their bytes stay.

    Raises UsageError without a reason: somebody will ask.
    """
    if not why.strip():
        raise UsageError("say why the dead letters are discarded: it stays on the record")
    with _views(settings) as connection:
        letters = connection.sql(_DECIDED, params=_values(selection)).to_arrow_table()
    if len(letters):
        _decide(settings, letters, "discarded", why, None)
    return len(letters)


@contextmanager
def _views(settings: Settings) -> Generator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        create_lake_views(connection, take_snapshot(open_lake(settings.lake_root)))
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET threads = 1")  # each reads some hundred megabytes ahead where letters are large
        yield connection


def _values(selection: Selection) -> dict[str, Any]:
    """Return what the statements bind."""
    topic = topic_partition = offset = None
    if selection.place is not None:
        found = _PLACE.fullmatch(selection.place)
        if found is None or not _is_text(selection.place):
            raise UsageError(f"{selection.place!r} is no place: write it like {'events-0@17'!r}, as `list` shows it")
        topic, topic_partition, offset = found[1], int(found[2]), int(found[3])
    return {
        "fate": selection.fate,
        "reason": selection.reason,
        "topic": topic,
        "topic_partition": topic_partition,
        "offset": offset,
    }


def _is_text(place: str) -> bool:
    """Return whether a place can be looked for: bytes of a command line that are not UTF-8 are no topic's name."""
    return not any("\ud800" <= character <= "\udfff" for character in place)


def _shares(letters: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Put dead letters together to what one commit takes well, each share in the order of the bus."""
    share: list[pa.Table] = []
    for some in letters:
        share.append(some)
        if sum(map(len, share)) >= _MOST_AT_ONCE or sum(one.nbytes for one in share) >= _MOST_BYTES:
            yield _in_order(share)
            share = []
    if share:
        yield _in_order(share)


def _in_order(share: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(share).sort_by([(name, "ascending") for name in ("topic_id", "topic_partition", "offset")])


def _valid(letters: pa.Table, settings: Settings) -> pa.Table:
    """Return the letters that are events by now."""
    numbered = KeptRecords(letters.select(RECORD.names), "", settings.contract).records
    return letters.take(decode(numbered, settings.contract).events["offset"].combine_chunks())


def _decide(settings: Settings, letters: pa.Table, fate: Fate, note: str, requeue_id: str | None) -> None:
    """Append what became of dead letters; of requeued ones it counts once their batch is committed."""
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
