"""The derivation: from `events` and a policy to `contribution`, in named steps of one SQL file each.

Owns the order of the steps. A step is a temporary view over the steps before it, so that any of them can be looked at
alone; `fact` alone is materialized, because every table is built from it. Needs a connection with `events`.
"""

from datetime import UTC, datetime, timedelta

import duckdb

from pipelines.errors import UsageError
from pipelines.reputation.policy import InForce, Policy
from pipelines.reputation.policy.tables import load_tables
from pipelines.reputation.sql import statement, use_utc

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MACROS = (
    *("parse_micro", "utc_day", "bucket", "governed", "floor_divide", "wilson"),
    *("round_half_up", "round_half_even", "round_floor", "round_ceiling"),
)


def prepare(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    as_of: datetime,
    known_at: datetime | None = None,
    source: str = "events",
) -> InForce:
    """Define the steps up to `contribution` for one policy and moment, and return the policy as it is then.

    With `known_at`, only events that were committed before it are known: what was shown then, late events left out.
    `source` is the table or view of the events. Computes nothing yet. Everything is temporary: a read-only warehouse
    will do. Calling again replaces what was prepared. Raises UsageError for an as_of without a time zone.
    """
    use_utc(connection)
    set_moment(connection, as_of)
    in_force = policy.at(as_of)
    load_tables(connection, in_force)
    for macro in MACROS:
        connection.execute(statement(f"macro_{macro}"))
    if known_at is not None:
        connection.execute("SET VARIABLE known_at = CAST(? AS BIGINT)", [epoch_us(known_at)])
    known = "" if known_at is None else statement("known_at")
    connection.execute(statement("known_event", source=source, known=known))
    for step in steps(in_force):
        connection.execute(step)
    return in_force


def set_moment(connection: duckdb.DuckDBPyConnection, as_of: datetime) -> None:
    """Move prepared steps to another moment at which the policy is the same."""
    connection.execute("SET VARIABLE as_of = CAST(? AS BIGINT)", [epoch_us(as_of)])


def steps(policy: InForce) -> list[str]:
    """Return the steps after `known_event` in their order; a rule that the policy does not have costs nothing."""
    actions = [action for edition in policy.editions for action in edition.rules.actions.values()]
    return [
        *map(statement, ("retracted_event", "status_transition", "status_period")),
        *map(statement, ("frozen_period", "reset_account")),
        _or_pass("corrected_event", "known_event", needed=bool(policy.rules.correction.actions)),
        statement("emitted"),
        _or_pass("readable", "emitted", needed=any(len(action.emissions) > 1 for action in actions)),
        statement("judged"),
        *_chain("judged", "gated", _gates(policy)),
        statement("earned"),
        *_chain("earned", "capped", _caps(policy)),
        statement("contribution", earned=statement("decayed") if policy.decays else "granted"),
    ]


def _or_pass(name: str, source: str, *, needed: bool) -> str:
    return statement(name) if needed else statement("pass_through", name=name, source=source)


def _chain(source: str, target: str, links: list[dict[str, str]]) -> list[str]:
    """Return steps that lead from one view to another, each over the one before: nothing denied comes back."""
    steps: list[str] = []
    for link in links:
        name = link["rule"]
        steps.append(statement(link["file"], name=name, source=source, **link))
        source = name
    return [*steps, statement("pass_through", name=target, source=source)]


def _gates(policy: InForce) -> list[dict[str, str]]:
    """Return the gates of each edition in their order: completion, then uniqueness."""
    links: list[dict[str, str]] = []
    for number, edition in enumerate(policy.editions):
        own = {"edition": f"edition_{number}"}
        rules = [f"completion_{number}_{i}" for i in range(len(edition.rules.completion))]
        links += [{"file": "completed", "rule": rule, **own} for rule in rules]
        for i, once in enumerate(edition.rules.once.values()):
            direction = "ASC" if once.keep == "first" else "DESC"
            links.append({"file": "once", "rule": f"once_{number}_{i}", "direction": direction, **own})
    return links


def _caps(policy: InForce) -> list[dict[str, str]]:
    """Return the caps of each edition in their order."""
    links: list[dict[str, str]] = []
    for number, edition in enumerate(policy.editions):
        for i, cap in enumerate(edition.rules.caps.values()):
            points = "granted" if cap.counts == "net" else "greatest(granted, 0)"
            link = {"file": "capped", "rule": f"cap_{number}_{i}", "limited_points": points}
            links.append({**link, "edition": f"edition_{number}"})
    return links


def materialize(connection: duckdb.DuckDBPyConnection, policy: InForce, only: str = "") -> None:
    """Compute `fact` from the prepared `contribution`; `only` narrows it to some users."""
    connection.execute(fact(policy, only))


def fact(policy: InForce, only: str = "") -> str:
    """Return the statement that computes `fact`."""
    return statement("fact", rating_rank=_rating_rank(policy), only=only)


def _rating_rank(policy: InForce) -> str:
    """Return the place of a rating counted from the latest, if any measure looks at the last N: it costs a sort."""
    needed = any(measure.last for measure in policy.rules.all_measures.values())
    return "row_number() OVER latest_first" if needed else "CAST(NULL AS BIGINT)"


def epoch_us(moment: datetime) -> int:
    """Return whole microseconds since 1970.

    Raises UsageError for a moment without a time zone.
    """
    if moment.tzinfo is None:
        raise UsageError(f"{moment.isoformat()} has no time zone: add Z or an offset")
    return (moment - _EPOCH) // timedelta(microseconds=1)
