"""Events of one user that affect another's score: completions, and the events that retract or correct them.

All look-ups are by link (`histories.py`): their cost depends on the number of events at the same keys, not on the
history of a user who completes many. Arrays of users and of links are as in `Histories`.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.resolved_histories import ResolvedHistories
from pipelines.reputation.sorted_words import distinct
from pipelines.reputation.sql import arrow_rows, statement


def has_completions(policy: EffectivePolicy) -> bool:
    """Return whether a completion rule is in force at any time."""
    return any(edition.rules.completion for edition in policy.editions)


def define_completions(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> str:
    """Define what the links of a policy depend on, and return it as text; empty for a policy without completion rules.

    The tables and variables of the policy must exist. Corrections count both as events that need a completion and as
    events that are one: they may change the value at the key.
    """
    gates = [(edition.rules, gate) for edition in policy.editions for gate in edition.rules.completion.values()]
    corrections = policy.rules.correction.actions if gates else ()
    completing = sorted({*corrections, *(action for _, gate in gates for action in gate.by)})
    gated = sorted({*corrections, *(action for rules, gate in gates for action in rules.covered_actions(gate))})
    keys = sorted({gate.key for _, gate in gates})
    connection.execute("SET VARIABLE gated_actions = ?", [gated])
    connection.execute("SET VARIABLE completing_actions = ?", [completing])
    connection.execute("SET VARIABLE completion_keys = ?", [keys])
    connection.execute(statement("histories_target"))
    targets = connection.execute("FROM target ORDER BY ALL").fetchall()
    return repr((gated, completing, keys, targets)) if gates else ""


def users_of_completions(
    connection: duckdb.DuckDBPyConnection, histories: ResolvedHistories, changed: pa.Table
) -> np.ndarray:
    """Return the users with an event that needs a completion among added or erased events (ROWS), as sorted hashes."""
    completions = _only_completions(connection, changed)
    completions = _only_completions(connection, _with_corrections(connection, histories, completions))
    return histories.users_linked(_links_to(connection, "gated", completions))


def completing_events(
    connection: duckdb.DuckDBPyConnection, histories: ResolvedHistories, events: pa.Table, users: np.ndarray
) -> pa.Table:
    """Return completions at the keys of events (ROWS), and what retracts or corrects them; none of `users`."""
    linked = _except(histories.events_linked(_links_to(connection, "completing", events)), users)
    return _only_completions(connection, _with_corrections(connection, histories, linked))


def _with_corrections(
    connection: duckdb.DuckDBPyConnection, histories: ResolvedHistories, events: pa.Table
) -> pa.Table:
    """Return events (ROWS), and those of the same users that they retract or correct, or that do so to them."""
    found = newest = events
    while len(newest):
        with arrow_rows(connection, newest.select(["event_id"])):
            links = distinct(connection.execute(statement("histories_links_to")).fetchnumpy()["link"])
        with arrow_rows(connection, _of_actions(connection, newest, "histories_rulings")):
            targets = connection.sql(statement("histories_targets")).to_arrow_table()
        targeted = histories.events_with_ids(
            distinct(targets["user_hash"].to_numpy()), targets["event_id"].combine_chunks()
        )
        related = pa.concat_tables([targeted, _of_users(histories.events_linked(links), newest)])
        newest = _distinct(related.filter(pc.invert(pc.is_in(related["event_id"], found["event_id"]))))
        found = pa.concat_tables([found, newest])
    return found


def _links_to(connection: duckdb.DuckDBPyConnection, kind: str, events: pa.Table) -> np.ndarray:
    """Return the links (sorted hashes) that events of a kind have with events (ROWS) of the other kind."""
    other = {"gated": "completing", "completing": "gated"}[kind]
    query = statement("histories_links_of_kind", kind=kind, other=other)
    with arrow_rows(connection, events):
        return distinct(connection.execute(query).fetchnumpy()["link"])


def _only_completions(connection: duckdb.DuckDBPyConnection, events: pa.Table) -> pa.Table:
    """Return the events that make, retract or correct a completion."""
    return _of_actions(connection, events, "histories_completing")


def _of_actions(connection: duckdb.DuckDBPyConnection, events: pa.Table, actions: str) -> pa.Table:
    """Return the events (ROWS) with one of the actions of the statement `actions`.

    In Arrow, because DuckDB would read all metadata.
    """
    wanted = connection.sql(statement(actions)).to_arrow_table()["action_type"]
    return events.filter(pc.is_in(events["action_type"], wanted.combine_chunks().cast(pa.large_string())))


def _of_users(events: pa.Table, others: pa.Table) -> pa.Table:
    return events.filter(pc.is_in(events["user_hash"], others["user_hash"]))


def _except(events: pa.Table, users: np.ndarray) -> pa.Table:
    return events.filter(pc.invert(pc.is_in(events["user_hash"], pa.array(users, pa.uint64()))))


def _distinct(events: pa.Table) -> pa.Table:
    """Return events without repetitions, by event_id, which is unique in a lake (`once`)."""
    _, first = np.unique(events["event_id"].to_numpy(), return_index=True)
    return events.take(pa.array(first))
