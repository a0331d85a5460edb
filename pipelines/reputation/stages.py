"""The derivation: from `events` and a policy to `contribution`, in named steps of one SQL file each.

Owns the order of the steps. A step is a temporary view over the steps before it, so that any of them can be looked at
alone; `fact` alone is materialized, because every table is built from it. Needs a connection with `events`.
"""

from datetime import UTC, datetime, timedelta

import duckdb

from pipelines.errors import UsageError
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.tables import load_tables
from pipelines.reputation.sql import statement

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEPS = (
    "macro_parse_micro",
    "macro_utc_day",
    "macro_floor_divide",
    "macro_round_half_up",
    "macro_round_half_even",
    "macro_round_floor",
    "macro_round_ceiling",
    "macro_wilson",
    "known_event",
    "status_transition",
    "status_period",
    "retracted_event",
    "emitted",
    "contribution",
)


def prepare(connection: duckdb.DuckDBPyConnection, policy: Policy, as_of: datetime) -> None:
    """Define the steps up to `contribution` for one policy and moment; computes nothing yet.

    Everything is temporary: a read-only warehouse will do. Calling again replaces what was prepared.
    """
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET VARIABLE as_of = CAST(? AS BIGINT)", [epoch_us(as_of)])
    load_tables(connection, policy)
    for step in _STEPS:
        connection.execute(statement(step))


def materialize(connection: duckdb.DuckDBPyConnection, policy: Policy) -> None:
    """Compute `fact` from the prepared `contribution`."""
    connection.execute(statement("fact", rating_rank=_rating_rank(policy)))


def _rating_rank(policy: Policy) -> str:
    """Return the place of a rating counted from the latest, if any measure looks at the last N: it costs a sort."""
    needed = any(measure.last for measure in policy.all_measures.values())
    return "row_number() OVER latest_first" if needed else "NULL"


def epoch_us(moment: datetime) -> int:
    """Return whole microseconds since 1970.

    Raises UsageError for a moment without a time zone.
    """
    if moment.tzinfo is None:
        raise UsageError(f"{moment.isoformat()} has no time zone: add Z or an offset")
    return (moment - _EPOCH) // timedelta(microseconds=1)
