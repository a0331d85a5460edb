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
_MACROS = (
    *("parse_micro", "utc_day", "bucket", "floor_divide", "wilson"),
    *("round_half_up", "round_half_even", "round_floor", "round_ceiling"),
)


def prepare(connection: duckdb.DuckDBPyConnection, policy: Policy, as_of: datetime) -> None:
    """Define the steps up to `contribution` for one policy and moment; computes nothing yet.

    Everything is temporary: a read-only warehouse will do. Calling again replaces what was prepared.
    """
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET VARIABLE as_of = CAST(? AS BIGINT)", [epoch_us(as_of)])
    load_tables(connection, policy)
    for macro in _MACROS:
        connection.execute(statement(f"macro_{macro}"))
    for step in _steps(policy):
        connection.execute(step)


def _steps(policy: Policy) -> list[str]:
    """Return the steps in their order; a rule that the policy does not have costs nothing."""
    return [
        *map(statement, ("known_event", "retracted_event", "status_transition", "status_period")),
        *map(statement, ("frozen_period", "reset_account")),
        _or_pass("corrected_event", "known_event", needed=bool(policy.correction.actions)),
        statement("emitted"),
        _or_pass("readable", "emitted", needed=any(len(action.emissions) > 1 for action in policy.actions.values())),
        statement("judged"),
        *_gates(policy),
        statement("earned"),
        *_caps(policy),
    ]


def _or_pass(name: str, source: str, *, needed: bool) -> str:
    return statement(name) if needed else statement("pass_through", name=name, source=source)


def _gates(policy: Policy) -> list[str]:
    """Return the steps from `judged` to `gated`: each completion, then each uniqueness, in the policy's order."""
    steps: list[str] = []
    source = "judged"
    for i in range(len(policy.completion)):
        steps.append(statement("completed", name=f"completion_{i}", source=source, rule=f"completion_{i}"))
        source = f"completion_{i}"
    for i, once in enumerate(policy.once.values()):
        direction = "ASC" if once.keep == "first" else "DESC"
        steps.append(statement("once", name=f"once_{i}", source=source, rule=f"once_{i}", direction=direction))
        source = f"once_{i}"
    return [*steps, statement("pass_through", name="gated", source=source)]


def _caps(policy: Policy) -> list[str]:
    """Return the steps from `earned` to `contribution`: each cap, in the policy's order, on what the last one left."""
    steps: list[str] = []
    source = "earned"
    for i, cap in enumerate(policy.caps.values()):
        points = "granted" if cap.counts == "net" else "greatest(granted, 0)"
        most = f"getvariable('cap_{i}_maximum')"
        limited = f"(granted - limited_points + least({most}, total) - least({most}, total - limited_points))"
        fragments = {"source": source, "rule": f"cap_{i}", "limited_points": points, "limited": limited}
        steps.append(statement("capped", name=f"cap_{i}", **fragments))
        source = f"cap_{i}"
    return [*steps, statement("contribution", source=source, earned=_earned(policy))]


def _earned(policy: Policy) -> str:
    return statement("decayed") if policy.decays else "granted"


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
