"""Reconciliation: whether every record read is accounted for, and what is served matches the lake.

Reads the lake, the index, the warehouse and the document store; changes nothing. Each check carries its evidence, so
that a failure can be acted on without another run. The Dagster checks are the same checks.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain

import duckdb
import pyarrow.compute as pc

from pipelines.boundary.text import amount
from pipelines.ingest.sources import topic_sources
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.erasure import count_remaining_rows
from pipelines.lake.files import require_intact
from pipelines.lake.index_check import compare_indexes
from pipelines.lake.mentions import count_mentions
from pipelines.lake.tables import Snapshot, open_lake
from pipelines.lake.tombstones import Tombstones, open_tombstones
from pipelines.operate.check import Advice, Check
from pipelines.operate.verify_served import verify_known_users, verify_served
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.warehouse_file import attach
from pipelines.settings import Settings

_MAX_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals over all commits: of records read, then of events made, then of offsets."""

    commits: int
    read: int
    converted: int
    filtered: int
    dead_letters: int
    made: int
    accepted: int
    duplicates: int
    conflicts: int
    erased: int
    withdrawn: int
    """Of the accepted events, those that withdrawals removed."""
    gaps: int
    lost: int
    mis_keyed: int


# Every offset below the checkpoint is in exactly one range, and every range adds up: its offsets, the records read, and
# the events made. Commits of format 1 have no counts of the latter: every record but a dead letter became one event.
_BROKEN_RANGES = """
WITH stored AS (
    SELECT version, unnest(ranges, recursive := true) FROM (SELECT version, ranges FROM commits)
),
ranges AS (
    SELECT *, accepted + duplicates + conflicts + coalesce(erased, 0) AS fates FROM stored
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
    OR read <> coalesce(converted, fates) + coalesce(filtered, 0) + dead_letters
    OR coalesce(made, fates) <> fates
    OR (source = 'contract' AND made <> converted)
    OR (next_offset >= start_offset AND next_offset - start_offset <> read + coalesce(gaps, 0) + coalesce(lost, 0))
ORDER BY version
"""
# Accepted events are in the table, erased or withdrawn. An erasure that lost the race to a withdrawal has noted events
# as erased that the withdrawal removed.
_WRONG_BATCHES = """
WITH found AS (
    SELECT batch_id, count(*) FILTER (place = 'events') AS stored, count(*) FILTER (place = 'erased') AS erased
    FROM (
        SELECT batch_id, 'events' AS place FROM events
        UNION ALL
        SELECT batch_id, 'erased' FROM erased WHERE table_name = 'events'
    )
    GROUP BY batch_id
),
removed AS (
    SELECT batch_id, sum(events)::BIGINT AS withdrawn FROM withdrawn GROUP BY batch_id
),
counted AS (
    SELECT
        batch_id,
        coalesce(accepted, 0) AS accepted,
        coalesce(stored, 0) AS stored,
        coalesce(found.erased, 0) AS erased,
        coalesce(removed.withdrawn, 0) AS withdrawn
    FROM (SELECT batch_id, accepted FROM commits)
    FULL JOIN found USING (batch_id)
    LEFT JOIN removed USING (batch_id)
)
SELECT batch_id, accepted, stored, erased, withdrawn
FROM counted
WHERE
    accepted > stored + erased + withdrawn
    OR accepted < stored + withdrawn + if(withdrawn > 0, 0, erased)
"""
_DUPLICATE_IDS = "SELECT event_id, count(*) AS times FROM events GROUP BY event_id HAVING count(*) > 1"
_COUNTS_BY_PARTITION = """
WITH ranges AS (
    SELECT unnest(ranges, recursive := true) FROM commits
),
recorded AS (
    SELECT topic_id, topic_partition, sum(ranges.{table})::BIGINT AS recorded FROM ranges GROUP BY ALL
),
stored AS (
    SELECT topic_id, topic_partition, count(*) AS stored
    FROM (
        SELECT topic_id, topic_partition FROM {table}
        UNION ALL
        SELECT topic_id, topic_partition FROM erased WHERE table_name = '{table}'
    )
    GROUP BY ALL
)
SELECT topic_id, topic_partition, recorded, coalesce(stored, 0) AS stored
FROM recorded
LEFT JOIN stored USING (topic_id, topic_partition)
WHERE recorded <> coalesce(stored, 0)
"""


_TOTALS = """
SELECT
    count(*)::BIGINT AS commits,
    coalesce(sum("read"), 0)::BIGINT AS "read",
    coalesce(sum(coalesce(converted, fates)), 0)::BIGINT AS converted,
    coalesce(sum(filtered), 0)::BIGINT AS filtered,
    coalesce(sum(dead_letters), 0)::BIGINT AS dead_letters,
    coalesce(sum(coalesce(made, fates)), 0)::BIGINT AS made,
    coalesce(sum(accepted), 0)::BIGINT AS accepted,
    coalesce(sum(duplicates), 0)::BIGINT AS duplicates,
    coalesce(sum(conflicts), 0)::BIGINT AS conflicts,
    coalesce(sum(erased), 0)::BIGINT AS erased,
    (SELECT coalesce(sum(events), 0)::BIGINT FROM withdrawn) AS withdrawn,
    coalesce(sum(gaps), 0)::BIGINT AS gaps,
    coalesce(sum(lost), 0)::BIGINT AS lost,
    coalesce(sum(mis_keyed), 0)::BIGINT AS mis_keyed
FROM (SELECT *, accepted + duplicates + conflicts + coalesce(erased, 0) AS fates FROM commits)
"""


def totals(snapshot: Snapshot) -> Totals:
    """Return the totals over all commits of a snapshot."""
    with open_lake_views(snapshot) as connection:
        (row,) = connection.execute(_TOTALS).fetchall()
    return Totals(*row)


def verify_lake(snapshot: Snapshot) -> Iterator[Check]:
    """Check that every offset read is accounted for and that no event is stored twice."""
    with open_lake_views(snapshot) as connection:
        yield _expect_none(connection, "offsets add up", "nothing-lost", _BROKEN_RANGES)
        yield _expect_none(connection, "commit counts match the events", "atomic", _WRONG_BATCHES)
        yield _expect_none(connection, "no duplicate event_id", "once", _DUPLICATE_IDS)
        for table in ("dead_letters", "conflicts"):
            yield _expect_none(
                connection, f"each {table[:-1].replace('_', ' ')} is stored", "nothing-lost", _by_partition(table)
            )


def verify_erased(settings: Settings) -> Check:
    """Check that lake and warehouse hold no row of an erased user, nor one that names such a user at a personal key.

    It may after a killed erasure, a restore, or when a key becomes personal. Other mentions of erased users in other
    users' rows are no failure; the evidence counts them, and says where the check cannot look. Reads all events if any
    user was erased.
    """
    lake = open_lake(settings.lake_root)
    tombstones = open_tombstones(lake, settings)
    left, mentions = asdict(count_remaining_rows(lake, tombstones)), count_mentions(lake, tombstones)
    left |= {"warehouse": _count_in_warehouse(settings, tombstones)}
    unfinished = f"rows of erased users: {left}; {Advice.FINISH_ERASURE}" if any(left.values()) else ""
    named = f"their ids occur in {mentions}, which an erasure leaves unchanged" if mentions else ""
    elsewhere = f"not looked at: {_elsewhere(settings)}" if tombstones.digests else ""
    evidence = "; ".join(filter(None, (unfinished, named, elsewhere)))
    return Check("no rows of erased users remain", "erasable", not unfinished, evidence)


def _count_in_warehouse(settings: Settings, tombstones: Tombstones) -> int:
    """Return how many erased users the warehouse has: its own tables hold no values of metadata."""
    if not tombstones.digests or not settings.warehouse_path.exists():
        return 0
    with attach(settings.warehouse_path) as connection:
        users = connection.sql("SELECT user_id FROM reputation").to_arrow_table()["user_id"]
    return pc.sum(tombstones.match_users(users)).as_py() or 0


def _elsewhere(settings: Settings) -> str:
    """Return where an erased user may remain that no check can read."""
    bus = f"the queue {settings.queue.name}" if settings.queue.kind else ", ".join(topic_sources(settings))
    return f"{bus} and what was copied from there or from the lake, such as backups, which each erasure lists"


def verify_index(settings: Settings) -> Check:
    """Check that each dedup index holds exactly the event_ids of the lake. Reads all events."""
    name, lake = "the index matches the event_ids", open_lake(settings.lake_root)
    snapshot = take_snapshot(lake)
    with open_lake_views(snapshot) as connection:
        versions = dict(connection.execute("SELECT batch_id, version FROM commits").fetchall())
    compared = compare_indexes(settings.index_dir, lake, lake.table("events"), versions)
    wrong = [each for each in compared if each.missing or each.extra]
    if not compared:
        return Check(
            name, "once", passed=None, evidence="there is no index yet, or the next start of ingest rebuilds it"
        )
    shown = "; ".join(f"{each.slot}: {each.missing:,} missing, {each.extra:,} surplus" for each in wrong)
    advice = f"{shown}: {Advice.REBUILD_INDEX.format(index=settings.index_dir)}"
    evidence = advice if wrong else f"{amount(sum(each.ids for each in compared), 'id')} compared"
    return Check(name, "once", not wrong, evidence)


def verify(settings: Settings) -> Iterator[Check]:
    """Run every check, including those of the index and the document store.

    Raises CorruptionError for a damaged file of the lake before any check: DuckDB does not look at its checksums.
    """
    snapshot = take_snapshot(open_lake(settings.lake_root))
    for file in chain.from_iterable(snapshot.files.values()):
        require_intact(file)
    yield from verify_lake(snapshot)
    yield verify_index(settings)
    yield verify_erased(settings)
    yield from verify_served(settings)
    yield verify_known_users(settings)


def _expect_none(connection: duckdb.DuckDBPyConnection, name: str, promise: str, exceptions: str) -> Check:
    """Return a check that passes if the query for exceptions returns no row."""
    rows = connection.execute(exceptions).fetchmany(_MAX_EXAMPLES)
    columns = [column[0] for column in connection.description or ()]
    shown = "; ".join(str(dict(zip(columns, row, strict=True))) for row in rows)
    return Check(name, promise, not rows, shown)


def _by_partition(table: str) -> str:
    return _COUNTS_BY_PARTITION.format(table=table)
