"""The life of a dead letter after it was written: looked at, requeued once contract or bounds are mended, or discarded.

What became of each is appended to the table `fates`, never overwritten. A requeued event keeps its event_id, so it
counts once, however often it is requeued or sent again (`once`).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import duckdb
import pyarrow as pa

from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import UsageError
from pipelines.ingest.kept import KeptRecords
from pipelines.lake.commit import CommitRecord, append_file
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import FATES, open_lake
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import Settings

_SELECTED = """
SELECT *
FROM dead_letters
WHERE
    fate = coalesce($fate, fate)
    AND reason = coalesce($reason, reason)
    AND ($place IS NULL OR concat(topic, '-', topic_partition, '@', "offset") = $place)
ORDER BY bus_time, topic_id, topic_partition, "offset"
"""
_MOST_AT_ONCE = 100_000
Fate = Literal["open", "requeued", "discarded"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: by fate, by reason code, by place (`topic-partition@offset`); None means any."""

    fate: Fate | None = "open"
    reason: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Requeued:
    """What a requeue did, in records."""

    accepted: int
    duplicates: int
    conflicts: int
    still_rejected: int


def select(settings: Settings, selection: Selection) -> pa.Table:
    """Return dead letters, oldest first: REJECTED columns, batch_id, and `fate`, `note`, `decided`.

    Raises UsageError when there is no lake.
    """
    values = {"fate": selection.fate, "reason": selection.reason, "place": selection.place}
    with duckdb.connect() as connection:
        create_lake_views(connection, take_snapshot(open_lake(settings.lake_root)))
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(_SELECTED, params=values).to_arrow_table()


def requeue(settings: Settings, selection: Selection) -> Requeued:
    """Decode the selected dead letters again, by the contract as it is now, and commit those that are events.

    The others stay as they are. A crash leaves them open, or committed: requeuing again is harmless (`once`).
    """
    records: list[CommitRecord] = []
    still_rejected = 0
    letters = select(settings, selection)
    for start in range(0, len(letters), _MOST_AT_ONCE):
        share = letters.slice(start, _MOST_AT_ONCE)
        valid = _valid(share, settings)
        still_rejected += len(share) - len(valid)
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
    letters = select(settings, selection)
    if len(letters):
        _decide(settings, letters, "discarded", why, None)
    return len(letters)


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
