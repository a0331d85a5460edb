"""Which users a refresh computes anew, and all their events.

An event that became known touches its user: by a commit, or because its time came. So does one that crossed the edge of
a window, or expired. A completion touches everybody who meets at its key; nothing else of one user reaches another.
Owns the temporary tables `touched_user` and `recalled`. Needs `by_user` and a prepared policy.
"""

import duckdb

from pipelines.reputation.policy import InForce
from pipelines.reputation.policy.numbers import DAY_US
from pipelines.reputation.sql import one_row, statement


def find_touched(connection: duckdb.DuckDBPyConnection, policy: InForce, since_version: int, since_us: int) -> int:
    """Fill `touched` with the hashes of the users whose views may differ from those of before; return how many.

    Before is a lake version and an as_of in microseconds. A hash stands for all users who share it.
    """
    connection.execute("SET VARIABLE since_version = ?", [since_version])
    connection.execute("SET VARIABLE since_as_of = CAST(? AS BIGINT)", [since_us])
    is_fresh = statement("refresh/is_fresh")
    connection.execute(statement("refresh/touched", is_fresh=is_fresh, has_moved=_has_moved(policy)))
    if _has_completions(policy):
        connection.execute(statement("refresh/changed_key", is_fresh=is_fresh))
        connection.execute(statement("refresh/touched_by_completion"))
    return one_row(connection.execute("SELECT count(*) FROM touched"))[0]


def put_off(connection: duckdb.DuckDBPyConnection, most_events: int | None) -> int:
    """Take the users with more events than `most_events` out of `touched`, into `put_off`; return how many stay.

    None: add those who were put off before instead. A user put off stays so until then, touched again or not.
    """
    if most_events is None:
        connection.execute(statement("refresh/touched_put_off"))
        connection.execute(statement("refresh/put_off_table"))
    else:
        connection.execute(statement("refresh/touched_heavy", most_events=str(most_events)))
        connection.execute(statement("refresh/touched_without_heavy"))
    return one_row(connection.execute("SELECT count(*) FROM touched"))[0]


def recall(connection: duckdb.DuckDBPyConnection, policy: InForce) -> None:
    """Fill `recalled` with every event that the views of the touched users depend on, and `touched_user`."""
    connection.execute(statement("refresh/recalled"))
    connection.execute(statement("refresh/recall"))
    if _has_completions(policy):
        connection.execute(statement("refresh/witness"))
        connection.execute(statement("refresh/witness_moment"))
        connection.execute(statement("refresh/witness_corrected"))
        connection.execute(statement("refresh/recall_witnesses"))
    connection.execute(statement("refresh/touched_user"))


def _has_completions(policy: InForce) -> bool:
    return any(edition.rules.completion for edition in policy.editions)


def _has_moved(policy: InForce) -> str:
    """Return the condition that an event crossed an edge between the two as_of: [start, end) of each edge."""
    start, end = "getvariable('since_as_of')", "getvariable('as_of')"
    windows = [days * DAY_US for days in policy.rules.windows_days]
    moved = [f"(t >= {start} - {window} AND t < {end} - {window})" for window in windows]
    moved += [f"(t > {start} - {age} AND t <= {end} - {age})" for age in _expiries(policy)]
    return " OR ".join(moved) or "false"


def _expiries(policy: InForce) -> list[int]:
    emissions = (
        emission
        for edition in policy.editions
        for action in edition.rules.actions.values()
        for emission in action.emissions
    )
    days = {emission.penalties_expire_after_days for emission in emissions}
    return [age * DAY_US for age in sorted(filter(None, days))]
