"""Reconciliation: whether everything that was read adds up, and what is served is what the lake says.

Reads the lake, the index, the warehouse and the cache; changes nothing. Each check carries its evidence, so that a
failure can be acted on without running anything again. The Dagster checks are these, one by one.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import duckdb

from pipelines.lake.erasure import held_of_erased
from pipelines.lake.history import take_snapshot
from pipelines.lake.index_check import compare_indexes
from pipelines.lake.mentions import count_mentions
from pipelines.lake.tables import Snapshot, open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.operate.check import Advice, Check
from pipelines.operate.verify_served import verify_nothing_else, verify_served
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import Settings

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Totals:
    """What all commits together did, in records."""

    commits: int
    read: int
    accepted: int
    duplicates: int
    conflicts: int
    dead_letters: int
    erased: int
    gaps: int
    lost: int
    mis_keyed: int


# Every offset below the checkpoint is in exactly one range, and every range adds up.
_BROKEN_RANGES = """
WITH ranges AS (
    SELECT version, unnest(ranges, recursive := true) FROM commits
),
chained AS (
    SELECT
        *,
        lag(next_offset) OVER (PARTITION BY topic_id, topic_partition ORDER BY version) AS expected_start
    FROM ranges
)
SELECT topic, topic_partition, version, start_offset, next_offset
FROM chained
WHERE
    start_offset <> coalesce(expected_start, start_offset)
    OR read <> accepted + duplicates + conflicts + dead_letters + erased
    OR (next_offset >= start_offset AND next_offset - start_offset <> read + gaps + lost)
ORDER BY version
"""
_WRONG_BATCHES = """
SELECT
    coalesce(c.batch_id, e.batch_id) AS batch_id,
    coalesce(c.accepted, 0) AS accepted,
    coalesce(e.stored, 0) AS stored
FROM commits AS c
FULL JOIN (
    SELECT batch_id, count(*) AS stored
    FROM (SELECT batch_id FROM events UNION ALL SELECT batch_id FROM erased WHERE table_name = 'events')
    GROUP BY batch_id
) AS e ON c.batch_id = e.batch_id
WHERE coalesce(c.accepted, 0) <> coalesce(e.stored, 0)
"""
_REPEATED_IDS = "SELECT event_id, count(*) AS times FROM events GROUP BY event_id HAVING count(*) > 1"
_COUNTED_BY_PLACE = """
WITH ranges AS (
    SELECT unnest(ranges, recursive := true) FROM commits
),
recorded AS (
    SELECT topic_id, topic_partition, sum(ranges.{table})::BIGINT AS recorded FROM ranges GROUP BY ALL
),
kept AS (
    SELECT topic_id, topic_partition, count(*) AS kept
    FROM (
        SELECT topic_id, topic_partition FROM {table}
        UNION ALL
        SELECT topic_id, topic_partition FROM erased WHERE table_name = '{table}'
    )
    GROUP BY ALL
)
SELECT topic_id, topic_partition, recorded, coalesce(kept, 0) AS kept
FROM recorded
LEFT JOIN kept USING (topic_id, topic_partition)
WHERE recorded <> coalesce(kept, 0)
"""


_TOTALS = """
SELECT
    count(*)::BIGINT AS commits,
    coalesce(sum("read"), 0)::BIGINT AS "read",
    coalesce(sum(accepted), 0)::BIGINT AS accepted,
    coalesce(sum(duplicates), 0)::BIGINT AS duplicates,
    coalesce(sum(conflicts), 0)::BIGINT AS conflicts,
    coalesce(sum(dead_letters), 0)::BIGINT AS dead_letters,
    coalesce(sum(erased), 0)::BIGINT AS erased,
    coalesce(sum(gaps), 0)::BIGINT AS gaps,
    coalesce(sum(lost), 0)::BIGINT AS lost,
    coalesce(sum(mis_keyed), 0)::BIGINT AS mis_keyed
FROM commits
"""


def totals(snapshot: Snapshot) -> Totals:
    """Return what all commits of a snapshot did together."""
    with _views(snapshot) as connection:
        (row,) = connection.execute(_TOTALS).fetchall()
    return Totals(*row)


def verify_lake(snapshot: Snapshot) -> Iterator[Check]:
    """Check that every offset that was read is accounted for and that no event is there twice."""
    with _views(snapshot) as connection:
        yield _none(connection, "offsets add up", "nothing-lost", _BROKEN_RANGES)
        yield _none(connection, "each commit's events are there", "atomic", _WRONG_BATCHES)
        yield _none(connection, "no event_id twice", "once", _REPEATED_IDS)
        for table in ("dead_letters", "conflicts"):
            yield _none(connection, f"each {table[:-1].replace('_', ' ')} is there", "nothing-lost", _by_place(table))


def verify_erased(settings: Settings) -> Check:
    """Check that no row of an erased user is in the lake: one may be where an erasure was killed, or a lake restored.

    What other users' events say of erased users is no failure; the evidence counts it. Reads all events if any user
    was erased.
    """
    lake = open_lake(settings.lake_root)
    tombstones = open_tombstones(lake, settings)
    left, mentions = asdict(held_of_erased(lake, tombstones)), count_mentions(lake, tombstones)
    unfinished = f"rows of erased users: {left}; {Advice.FINISH_ERASURE}" if any(left.values()) else ""
    named = f"their ids stand in {mentions}, which an erasure leaves" if mentions else ""
    evidence = "; ".join(filter(None, (unfinished, named)))
    return Check("rows of erased users are gone", "erasable", not unfinished, evidence)


def verify_index(settings: Settings) -> Check:
    """Check that each dedup index holds the event_ids of the lake and no others. Reads all events."""
    name, lake = "the index knows every event_id", open_lake(settings.lake_root)
    snapshot = take_snapshot(lake)
    with _views(snapshot) as connection:
        versions = dict(connection.execute("SELECT batch_id, version FROM commits").fetchall())
    compared = compare_indexes(settings.index_dir, lake, lake.table("events"), versions)
    wrong = [each for each in compared if each.missing or each.surplus]
    if not compared:
        return Check(name, "once", passed=None, evidence="there is no index yet, or the next start rebuilds it")
    shown = "; ".join(f"{each.slot}: {each.missing:,} missing, {each.surplus:,} too many" for each in wrong)
    advice = f"{shown}: {Advice.REBUILD_INDEX.format(index=settings.index_dir)}"
    evidence = advice if wrong else f"{sum(each.ids for each in compared):,} ids compared"
    return Check(name, "once", not wrong, evidence)


def verify(settings: Settings) -> Iterator[Check]:
    """Run every check, those of the index and the cache included."""
    yield from verify_lake(take_snapshot(open_lake(settings.lake_root)))
    yield verify_index(settings)
    yield verify_erased(settings)
    yield from verify_served(settings)
    yield verify_nothing_else(settings)


@contextmanager
def _views(snapshot: Snapshot) -> Generator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        create_lake_views(connection, snapshot)
        yield connection


def _none(connection: duckdb.DuckDBPyConnection, name: str, promise: str, exceptions: str) -> Check:
    """Return a check that passes when the query of its exceptions finds nothing."""
    rows = connection.execute(exceptions).fetchmany(_SHOWN)
    columns = [column[0] for column in connection.description or ()]
    shown = "; ".join(str(dict(zip(columns, row, strict=True))) for row in rows)
    return Check(name, promise, not rows, shown)


def _by_place(table: str) -> str:
    return _COUNTED_BY_PLACE.format(table=table)
