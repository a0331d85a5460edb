"""Lakes for measurements: events of many users over a year, committed like batches from the bus."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from pipelines.contract.schema import EVENT, POSITION
from pipelines.ingest.batch import OffsetRange
from pipelines.lake.commit import CommitRecord, commit_batch, describe_events, stage_events
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import Lake, create_lake

AS_OF = datetime(2025, 11, 20, tzinfo=UTC)
_YEAR_US = 365 * 86_400_000_000
_BATCH_ROWS = 1_000_000
_TOPIC_ID = "measured"
_COLUMNS = pa.schema([*EVENT, *POSITION])
# In ten events: six ratings, the three transactions of their rides, and a report; users, raters and stars by a hash of
# the number.
_EVENTS = """
SELECT
    md5(i::VARCHAR) AS event_id,
    'user-' || hash(i * 7 + 1) % if(i % 10 < 6, $rated, $users) AS user_id,
    CASE
        WHEN i % 10 < 6 THEN 'DriverRated'
        WHEN i % 10 < 9 THEN 'TransactionCompleted'
        WHEN i % 5000 = 9 THEN 'AccountSuspended'
        WHEN i % 5000 = 4999 THEN 'AccountReinstated'
        ELSE 'UserReported'
    END AS action_type,
    make_timestamptz($from_us + (i - $first) * $step_us) AS event_time,
    MAP {
        'rating': (1 + hash(i) % 5)::VARCHAR,
        'rater_id': 'user-' || hash(i * 13) % $users,
        'ride_id': 'ride-' || i // 10 * 3 + i % 10 % 3
    } AS metadata,
    'measured' AS topic_id,
    'events' AS topic,
    0::INTEGER AS topic_partition,
    i AS "offset",
    event_time AS bus_time
FROM range($first, $last) AS numbers(i)
"""


def make_lake(root: str | Path, events: int, users: int, rated: int | None = None) -> Lake:
    """Return a lake in `root` with `events` events, evenly over the year before AS_OF; extend an existing lake.

    rated: how many of the users ratings are about; None: all.
    """
    lake = create_lake(root)
    step = _YEAR_US // events
    start = int(AS_OF.timestamp()) * 1_000_000 - _YEAR_US
    for first in range(_next_offset(lake), events, _BATCH_ROWS):
        add_events(lake, min(_BATCH_ROWS, events - first), users, start + first * step, step, rated)
    take_snapshot(lake)
    return lake


def add_events(lake: Lake, count: int, users: int, from_us: int, step_us: int, rated: int | None = None) -> None:
    """Commit `count` more events, one every `step_us` microseconds from `from_us` on."""
    first = _next_offset(lake)
    commit_rows(lake, make_rows(first, count, users, from_us, step_us, rated), first)


def commit_rows(lake: Lake, rows: pa.Table, first: int) -> None:
    """Commit rows of `make_rows` that begin at number `first`."""
    count = len(rows)
    fates = dict.fromkeys(("read", "converted", "made", "accepted"), count)
    offsets = OffsetRange(_TOPIC_ID, "events", 0, first, first + count, **fates)
    batch_id = f"measured-{first}"
    record = CommitRecord(batch_id, "benchmark", datetime.now(UTC), (offsets,), **describe_events(rows))
    commit_batch(lake, lake.table("events"), stage_events(lake.table("events"), rows, batch_id), record)


def make_rows(first: int, count: int, users: int, from_us: int, step_us: int, rated: int | None = None) -> pa.Table:
    """Return `count` events from number `first` on, as EVENT and POSITION columns."""
    values = {"users": users, "first": first, "last": first + count, "from_us": from_us, "step_us": step_us}
    values["rated"] = rated or users
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(_EVENTS, params=values).to_arrow_table().cast(_COLUMNS)


def _next_offset(lake: Lake) -> int:
    return lake.table("events").transaction_version(f"ingest:{_TOPIC_ID}:0") or 0
