"""Loads: what came into the lake by a mapping of ours, and taking it back as a whole.

A load is what was read of one file under one column mapping (its topic id), or of the topics of one source file as that
was then (`NAME@DIGEST`). Events of topics in our own contract are no load: their producers say what an event is.

A withdrawal is one commit (`lake/withdrawal.py`). What follows it is completed by the same command after a crash: the
indexes forget the event_ids, and the dead letters of the load are closed.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError
from pipelines.lake.commit import CommitRecord
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.index import forget_erased
from pipelines.lake.tables import open_lake
from pipelines.lake.withdrawal import BatchTopic, withdraw_batches
from pipelines.operate.dead_letters import close_withdrawn
from pipelines.refresh import policy_in_force
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.sql import arrow_rows
from pipelines.settings import Settings

_MIN_PREFIX = 8
"""An id may be shortened to this many characters."""
_PARTS = """
CREATE TEMP TABLE part AS
WITH ranges AS (
    SELECT batch_id, version, committed, unnest(ranges, recursive := true)
    FROM (SELECT batch_id, version, committed, ranges FROM commits WHERE source <> 'withdrawal')
)
SELECT
    batch_id,
    topic_id,
    topic,
    starts_with(topic, 'file:') AS is_file,
    CASE
        WHEN starts_with(topic, 'file:') THEN left(topic_id, 17)
        WHEN source <> 'contract' THEN source || '@' || left(source_digest, 12)
    END AS load,
    min(version) AS version,
    min(committed) AS committed,
    sum("read")::BIGINT AS "read",
    sum(accepted)::BIGINT AS accepted,
    sum(duplicates)::BIGINT AS duplicates,
    sum(conflicts)::BIGINT AS conflicts,
    sum(dead_letters)::BIGINT AS dead_letters,
    any_value(withdrawn_at) AS withdrawn_at,
    any_value(note) AS why
FROM ranges
LEFT JOIN withdrawn USING (batch_id, topic_id)
GROUP BY batch_id, topic_id, topic, source, source_digest
"""
"""What each batch read of each topic. `load` is null in our own contract."""
_LOADS = """
SELECT
    load,
    {batch}
    array_to_string(list_sort(list_distinct(list(if(is_file, substr(topic, 6), topic)))), ', ') AS origin,
    strftime(max(committed), '%Y-%m-%d %H:%M:%S') AS committed,
    sum("read")::BIGINT AS "read",
    sum(accepted)::BIGINT AS accepted,
    sum(duplicates)::BIGINT AS duplicates,
    sum(conflicts)::BIGINT AS conflicts,
    sum(dead_letters)::BIGINT AS dead_letters,
    if(withdrawn_at IS NULL, 'in the lake', 'withdrawn') AS state,
    why
FROM part
WHERE load IS NOT NULL
GROUP BY ALL
ORDER BY min(version), load
"""
_NAMED = """
SELECT batch_id, topic_id, load, if(starts_with(load, $name) OR topic_id = $name, load, batch_id) AS meant
FROM part
WHERE
    load = $name
    OR topic_id = $name
    OR batch_id = $name
    OR (length($name) >= $min_prefix AND (starts_with(load, $name) OR starts_with(batch_id, $name)))
"""
_CHOOSE = """
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT batch_id, topic_id, topic, withdrawn_at
FROM part
WHERE (batch_id, topic_id) IN (SELECT (batch_id, topic_id) FROM arrow_rows)
    OR (is_file AND topic_id IN (SELECT topic_id FROM arrow_rows))
"""
"""Of a file always the whole load, since its checkpoint goes back to its start."""
_REMOVED = """
CREATE TEMP VIEW removed AS
SELECT events.*
FROM events
SEMI JOIN chosen USING (batch_id, topic_id)
"""
_EVENTS = "SELECT count(*), count(DISTINCT user_id), min(event_day), max(event_day) FROM removed"
_LETTERS = "SELECT count(*) FROM dead_letters SEMI JOIN chosen USING (batch_id, topic_id) WHERE fate = 'open'"
_OTHERS = """
WITH later AS (
    SELECT *
    FROM part
    ANTI JOIN chosen USING (batch_id, topic_id)
    WHERE withdrawn_at IS NULL AND version > (SELECT min(version) FROM part SEMI JOIN chosen USING (batch_id, topic_id))
),
refused AS (
    SELECT conflicts.batch_id, conflicts.topic_id, count(*) AS conflicts
    FROM conflicts
    SEMI JOIN removed USING (event_id)
    GROUP BY ALL
)
SELECT
    coalesce(load, topic) AS load,
    any_value(topic),
    sum(duplicates)::BIGINT AS duplicates,
    coalesce(sum(refused.conflicts), 0)::BIGINT AS conflicts
FROM later
LEFT JOIN refused USING (batch_id, topic_id)
GROUP BY coalesce(load, topic)
HAVING duplicates > 0 OR coalesce(sum(refused.conflicts), 0) > 0
ORDER BY min(version)
"""
_WITHDRAWN_SINCE = """
SELECT coalesce(sum(events), 0)::BIGINT
FROM withdrawn
JOIN (SELECT batch_id, committed FROM commits) USING (batch_id)
WHERE committed < $moment AND withdrawn_at >= $moment
"""
_TARGETING = """
SELECT count(*)
FROM events
ANTI JOIN chosen USING (batch_id, topic_id)
WHERE
    (list_contains($retracting, action_type) AND metadata[$retracted] IN (SELECT event_id FROM removed))
    OR (list_contains($correcting, action_type) AND metadata[$corrected] IN (SELECT event_id FROM removed))
"""


@dataclass(frozen=True, slots=True)
class Later:
    """What a later load, or a topic in our own contract, lost to events that a withdrawal removes."""

    load: str
    topic: str
    duplicates: int
    """All its duplicates: those of events that stay are among them."""
    conflicts: int
    """Exactly those with the removed events."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a withdrawal would remove, and what depends on it."""

    batches: int
    """Of these and the topics of each, those that are not withdrawn yet."""
    events: int
    users: int
    first_day: date | None
    last_day: date | None
    dead_letters: int
    """Open ones, which are closed."""
    later: tuple[Later, ...]
    targeting: int
    """Retractions and corrections that stay, of events that are removed: they have no effect until these return."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The outcome of a withdrawal; `record` is None if everything had been withdrawn before."""

    record: CommitRecord | None
    closed: int
    """Dead letters that were closed."""


def list_loads(settings: Settings, *, by_batch: bool = False) -> list[dict[str, Any]]:
    """Return the loads in the order of their first commits: what is in the lake, and what was withdrawn.

    Of each: load (its id), origin, committed, the counts of its rows or records, state and why; `by_batch` has a
    row for every batch of a load, with its batch_id. Raises UsageError if there is no lake.
    """
    with _open_parts(settings) as connection:
        return connection.sql(_LOADS.format(batch="batch_id," if by_batch else "")).pl().to_dicts()


def preview_withdrawal(settings: Settings, names: Sequence[str]) -> Preview:
    """Return what a withdrawal would remove; change nothing. Raises like `withdraw_loads`."""
    rules = policy_in_force(settings).at(datetime.now(UTC)).rules
    targets = {
        "retracting": list(rules.retraction.actions),
        "retracted": rules.retraction.target,
        "correcting": list(rules.correction.actions),
        "corrected": rules.correction.target,
    }
    with _open_parts(settings) as connection:
        chosen = _choose(connection, names)
        connection.execute(_REMOVED)
        ((events, users, first, last),) = connection.execute(_EVENTS).fetchall()
        ((letters,),) = connection.execute(_LETTERS).fetchall()
        ((targeting,),) = connection.execute(_TARGETING, targets).fetchall()
        later = tuple(Later(*row) for row in connection.execute(_OTHERS).fetchall())
    return Preview(len(chosen), events, users, first, last, letters, later, targeting)


def withdraw_loads(settings: Settings, names: Sequence[str], why: str) -> Withdrawal:
    """Remove the events of loads and batches from the lake by one commit; the next refresh updates the scores.

    names: loads and batches; a batch of a file stands for its load.
    Safe to kill at any step, and to repeat. Raises UsageError without a reason and for a name that is no load,
    TransientError if other processes kept committing.
    """
    if not why.strip():
        raise UsageError("give the reason (--why) for withdrawing the load; it is recorded with the commit")
    lake = open_lake(settings.lake_root)

    def choose() -> list[BatchTopic]:
        with _open_parts(settings) as connection:
            return _choose(connection, names)

    record = withdraw_batches(lake, choose, why.strip())
    forget_erased(settings.index_dir, lake, lake.table("events"))
    return Withdrawal(record, close_withdrawn(settings))


def withdrawn_since(settings: Settings, moment: datetime) -> int:
    """Return how many events were in the lake at a moment and were withdrawn since: no answer as of then has them."""
    with _open_parts(settings) as connection:
        ((count,),) = connection.execute(_WITHDRAWN_SINCE, {"moment": moment}).fetchall()
    return count


def loads_of_file(settings: Settings, path: str) -> list[str]:
    """Return the loads of a file (or address), under any mapping. Raises UsageError if there is none."""
    origins = {path, str(Path(path).resolve())}
    found = {load["load"]: None for load in list_loads(settings) if load["origin"] in origins}
    if not found:
        raise UsageError(f"{path} was not loaded: `karmalake loads list` shows what was")
    return list(found)


@contextmanager
def _open_parts(settings: Settings) -> Generator[duckdb.DuckDBPyConnection]:
    """Yield a connection with the views of the newest snapshot, and the table `part`."""
    with open_lake_views(take_snapshot(open_lake(settings.lake_root))) as connection:
        connection.execute(_PARTS)
        yield connection


def _choose(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> list[BatchTopic]:
    """Fill the table `chosen` with what the names stand for; return what of it is not withdrawn yet."""
    named = pa.concat_tables([_find(connection, name) for name in dict.fromkeys(names)])
    with arrow_rows(connection, named):
        connection.execute(_CHOOSE)
    connection.execute("DELETE FROM chosen WHERE withdrawn_at IS NOT NULL")
    rows = connection.execute("SELECT batch_id, topic_id, topic FROM chosen ORDER BY ALL").fetchall()
    return [BatchTopic(*row) for row in rows]


def _find(connection: duckdb.DuckDBPyConnection, name: str) -> pa.Table:
    """Return what a name stands for, without topics in our own contract."""
    found = connection.sql(_NAMED, params={"name": name, "min_prefix": _MIN_PREFIX}).to_arrow_table()
    loads = set(found["load"].to_pylist())
    if not len(found):
        raise UsageError(f"there is no load or batch {name!r}: `karmalake loads list` shows those that are")
    if loads == {None}:
        raise UsageError(
            f"{name} is of a topic in our own contract, whose producers say what an event is, so it is no load: they "
            "can retract or correct its events"
        )
    if len(set(found["meant"].to_pylist())) > 1:
        raise UsageError(f"several loads or batches begin with {name}: give more of the id")
    return found.filter(pc.is_valid(found["load"]))
