"""Events by an operator: a retraction of one event, an adjustment of a user's points.

They are events like any other, of actions that the policy in force names: they have the time of the command, the reason
and the operator in their metadata, and are explained, retracted and erased like others. No topic has them, only the
lake. What an event would do is previewed with the rules of an explanation, over the lake and the event.

The event_id is a digest of what the operator asked for, so a command that is repeated counts once (`once`). Others can
compute it, too: where an event that no operator made has taken it, the next one is used, and so it is where another
policy no longer reads the retraction.
"""

import getpass
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any, NamedTuple

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.contract.schema import EVENT
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import KarmalakeError, UsageError
from pipelines.ingest.operator import OperatorSource
from pipelines.lake.commit import CommitRecord
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.refresh import policy_in_force
from pipelines.reputation.explain import explain
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.merged_users import aliases_in
from pipelines.reputation.policy import Policy, Rules
from pipelines.reputation.policy.actions import Points
from pipelines.reputation.policy.numbers import decimals
from pipelines.settings import Settings

_MICROSECOND = timedelta(microseconds=1)
_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]+)?")
_EVENT = """
SELECT event_id, user_id, action_type, event_time, metadata, starts_with(topic_id, 'operator-')
FROM events
WHERE event_id = ?
"""
_ERASED = "SELECT count(*) FROM erased WHERE table_name = 'events' AND event_digest = md5(batch_id || ?)"
_USER = "SELECT count(*) FROM (SELECT 1 FROM events WHERE user_id IN (SELECT unnest(?)) LIMIT 1)"
_ADD_EVENT = """
ALTER VIEW events RENAME TO stored_events;
CREATE VIEW events AS FROM stored_events UNION ALL BY NAME FROM operator_event
"""


class StoredEvent(NamedTuple):
    """An event of the lake."""

    event_id: str
    user_id: str
    action_type: str
    event_time: datetime
    metadata: dict[str, str]
    is_by_operator: bool


@dataclass(frozen=True, slots=True)
class OperatorEvent:
    """An event by an operator that is valid, with what it does to the user's all-time score."""

    event: pa.Table
    """EVENT columns, one row; the one in the lake if it is recorded."""
    target: StoredEvent | None
    """The event that it retracts."""
    is_recorded: bool
    """Whether the lake has it from an earlier command: nothing is committed then."""
    reason: str
    """Its reason in an explanation: `retraction`, or `granted` and the like."""
    score_before: Decimal
    score_after: Decimal

    @property
    def event_id(self) -> str:
        """Its event_id."""
        return self.event["event_id"][0].as_py()

    @property
    def user_id(self) -> str:
        """The user whose score changes."""
        return self.event["user_id"][0].as_py()


def preview_retraction(settings: Settings, event_id: str, why: str, operator: str | None = None) -> OperatorEvent:
    """Return what `retract` would commit and change; change nothing. Raises like `retract`."""
    why, operator, now = require_text(why, "the reason (--why)"), operator_name(operator), datetime.now(UTC)
    with _open_views(settings) as (connection, policy):
        rules = policy.at(now).rules
        target = _find_target(connection, require_text(event_id, "the event_id"))
        if not rules.retraction.actions:
            raise UsageError(f"{_unable(policy, rules)} nothing can be retracted: give it [retraction] actions")
        said = _metadata(why, operator, rules.retraction.target, target.event_id)
        identity, stored = _find_identity(
            connection,
            ("retract", target.user_id, target.event_id),
            lambda found: (
                found.action_type in rules.retraction.actions
                and found.metadata.get(rules.retraction.target) == target.event_id
            ),
        )
        if stored is None:
            _require_retractable(connection, policy, target, now)
        event = _event(identity, target.user_id, rules.retraction.actions[0], now, said)
        return _preview(settings, connection, policy, event, target, stored)


def retract(
    settings: Settings, event_id: str, why: str, operator: str | None = None
) -> tuple[OperatorEvent, CommitRecord | None]:
    """Commit the retraction of one event; return it with the record of its commit, None if it was recorded before.

    operator: who does it; None means the login name. The next refresh updates the scores.
    Safe to kill and to repeat. Raises UsageError without a reason, for an event that cannot be retracted, and if the
    policy in force has no retractions; KarmalakeError for an event that the lake does not hold.
    """
    prepared = preview_retraction(settings, event_id, why, operator)
    return prepared, _commit(settings, prepared)


def preview_adjustment(
    settings: Settings,
    user_id: str,
    points: str | Decimal,
    why: str,
    operator: str | None = None,
    identity: str | None = None,
) -> OperatorEvent:
    """Return what `adjust` would commit and change; change nothing. Raises like `adjust`."""
    why, operator, now = require_text(why, "the reason (--why)"), operator_name(operator), datetime.now(UTC)
    with _open_views(settings) as (connection, policy):
        rules, known = policy.at(now).rules, aliases_in(connection)
        names = known.names(require_text(user_id, "the user_id"))
        _require_user(settings, connection, user_id, names)
        if rules.adjustment is None:
            raise UsageError(f"{_unable(policy, rules)} points cannot be adjusted: give it an [adjustment]")
        number = _parse_points(points, rules.adjustment.points)
        named = require_text(identity, "the identity (--id)") if identity is not None else f"{number} {why}"
        found = [_find_identity(connection, ("adjust", name, named), lambda _: True) for name in names]
        event_id, stored = next((each for each in found if each[1] is not None), found[0])
        said = _metadata(why, operator, str(rules.adjustment.points.key), number)
        event = _event(event_id, names[0], rules.adjustment.action, now, said)
        _require_same(stored, event, named)
        return _preview(settings, connection, policy, event, None, stored)


def adjust(
    settings: Settings,
    user_id: str,
    points: str | Decimal,
    why: str,
    operator: str | None = None,
    identity: str | None = None,
) -> tuple[OperatorEvent, CommitRecord | None]:
    """Commit an adjustment of a user's points; return it with the record of its commit, None if it was recorded before.

    points: a plain decimal number within the bounds of the policy's `[adjustment]`.
    operator: who does it; None means the login name.
    user_id: a former one stands for the current one of the person, under which the event is recorded.
    identity: what it is about, such as the number of a ticket: each counts once. None means points and reason.
    Safe to kill and to repeat. Raises UsageError without a reason, for points that the policy does not allow, for an
    erased user and for an identity that has other points; KarmalakeError for a user without an event.
    """
    prepared = preview_adjustment(settings, user_id, points, why, operator, identity)
    return prepared, _commit(settings, prepared)


@contextmanager
def _open_views(settings: Settings) -> Generator[tuple[duckdb.DuckDBPyConnection, Policy]]:
    """Yield a connection with the views of the newest snapshot, and the policy in force."""
    with open_lake_views(take_snapshot(open_lake(settings.lake_root))) as connection:
        yield connection, policy_in_force(settings)


def _find_event(connection: duckdb.DuckDBPyConnection, event_id: str) -> StoredEvent | None:
    found = connection.execute(_EVENT, [event_id]).fetchall()
    return StoredEvent(*found[0]) if found else None


def _find_identity(
    connection: duckdb.DuckDBPyConnection, asked: tuple[str, str, str], holds: Callable[[StoredEvent], bool]
) -> tuple[str, StoredEvent | None]:
    """Return the event_id of what an operator asks for, and that event if an earlier command recorded it.

    asked: kind, user_id and what it is about.
    holds: whether such an event still does what is asked: under another policy it may not.
    """
    (kind, user_id, named), taken = asked, 0
    while True:
        event_id = f"{kind}-{_digest(user_id, named, *['taken'] * taken)}"
        stored = _find_event(connection, event_id)
        if stored is None or (stored.is_by_operator and stored.user_id == user_id and holds(stored)):
            return event_id, stored
        taken += 1


def _find_target(connection: duckdb.DuckDBPyConnection, event_id: str) -> StoredEvent:
    found = _find_event(connection, event_id)
    if found is not None:
        return found
    ((erased,),) = connection.execute(_ERASED, [event_id]).fetchall()
    if erased:
        raise UsageError(f"the event {event_id!r} was of a user who was erased: there is nothing to retract")
    raise KarmalakeError(
        f"the lake holds no event {event_id!r}: `karmalake explain USER` shows the event_ids of a user"
    )


def _require_retractable(
    connection: duckdb.DuckDBPyConnection, policy: Policy, target: StoredEvent, now: datetime
) -> None:
    """Raise UsageError for a retraction, a status event, and an event that was retracted."""
    rules, name = policy.at(now).rules, f"{target.event_id!r} of user {target.user_id!r}"
    if target.action_type in rules.retraction.actions:
        raise UsageError(f"{name} is a retraction, which cannot be taken back: `karmalake adjust` gives points instead")
    if target.action_type in (*rules.status.suspend, *rules.status.reinstate):
        raise UsageError(f"{name} is a status event, which cannot be retracted: emit one with the opposite effect")
    ledger = explain(connection, policy, target.user_id, max(now, target.event_time) + _MICROSECOND).filter(
        pl.col("event_id") == target.event_id
    )
    related = ledger["related_event_id"].drop_nulls().to_list()
    is_correction = ledger["reason"].is_in(["correction", "no effect"]).any()
    if related and not is_correction:
        raise UsageError(f"{name} is already retracted, by the event {related[0]!r}: nothing is left to retract")


def _require_user(settings: Settings, connection: duckdb.DuckDBPyConnection, user_id: str, names: list[str]) -> None:
    if open_tombstones(open_lake(settings.lake_root), settings).contains(user_id.encode()):
        raise UsageError(f"user {user_id!r} was erased: no event of this user counts any more")
    ((known,),) = connection.execute(_USER, [names]).fetchall()
    if not known:
        raise KarmalakeError(f"the lake holds no event of user {user_id!r}: check the spelling")


def _require_same(stored: StoredEvent | None, event: pa.Table, identity: str) -> None:
    """Raise UsageError if an adjustment of this identity is recorded with other points."""
    if stored is None:
        return
    said = {key: value for key, value in event["metadata"][0].as_py() if key not in ("why", "operator")}
    if not said.items() <= stored.metadata.items():
        points = ", ".join(stored.metadata.get(key, "none") for key in said)
        raise UsageError(
            f"the adjustment {identity!r} of user {stored.user_id!r} is recorded with {points} points: name another "
            "identity (--id) for another adjustment"
        )


def _parse_points(points: str | Decimal, allowed: Points) -> str:
    """Return points as metadata hold them. Raises UsageError for those that the policy does not allow."""
    text = str(points).strip()
    if not _NUMBER.fullmatch(text):
        raise UsageError(f"{text!r} is not a plain decimal number: write points like 5 or -2.5")
    number = Decimal(text)
    if decimals(number) > allowed.digits:
        raise UsageError(f"{text} has {decimals(number)} digits after the point: the policy allows {allowed.digits}")
    if not allowed.minimum <= number <= allowed.maximum:
        raise UsageError(
            f"{text} is out of bounds: the policy allows adjustments from {allowed.minimum:f} to {allowed.maximum:f}"
        )
    if not number:
        raise UsageError("0 points change nothing: give a number above or below 0")
    return f"{number.normalize():f}"


def _preview(
    settings: Settings,
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    new: pa.Table,
    target: StoredEvent | None,
    stored: StoredEvent | None,
) -> OperatorEvent:
    """Explain the user's score without and with an event, or with the one that an earlier command recorded.

    Raises UsageError if the contract rejects it.
    """
    event = new if stored is None else _event(*stored[:5])
    ahead = [event["event_time"][0].as_py(), *([target.event_time] if target else [])]  # clocks differ
    moment = max(datetime.now(UTC), *ahead) + _MICROSECOND
    user_id = event["user_id"][0].as_py()
    before = explain(connection, policy, user_id, moment)
    after = before
    if stored is None:
        OperatorSource(event, settings.contract, event["event_time"][0].as_py()).decode()
        connection.register("operator_event", event)
        connection.execute(_ADD_EVENT)
        after = explain(connection, policy, user_id, moment)
    (reason,) = after.filter(pl.col("event_id") == event["event_id"][0].as_py())["reason"].to_list()
    return OperatorEvent(event, target, stored is not None, reason, _score(before), _score(after))


def _score(ledger: pl.DataFrame) -> Decimal:
    return ledger["score"].to_list()[-1] if len(ledger) else Decimal(0)


def _event(event_id: str, user_id: str, action_type: str, now: datetime, metadata: dict[str, str]) -> pa.Table:
    values: dict[str, Any] = {"event_id": event_id, "user_id": user_id, "action_type": action_type}
    return pa.Table.from_pylist([values | {"event_time": now, "metadata": list(metadata.items())}], EVENT)


def _metadata(why: str, operator: str, key: str, value: str) -> dict[str, str]:
    """Return the metadata of an event. Raises UsageError where the policy's key would replace what an operator says."""
    said = {"why": why, "operator": operator}
    if key in said:
        raise UsageError(
            f"the policy in force reads the metadata key {key!r}, which holds the operator's words: rename it"
        )
    return said | {key: value}


def _commit(settings: Settings, prepared: OperatorEvent) -> CommitRecord | None:
    """Commit an event by the drain; return None if it was recorded before."""
    if prepared.is_recorded:
        return None
    records: list[CommitRecord] = []
    source = OperatorSource(prepared.event, settings.contract, prepared.event["event_time"][0].as_py())
    with open_ingest_from(source, settings) as ingest:
        drain(ingest, records.append)
    (record,) = records
    if not record.total("accepted"):
        raise KarmalakeError(
            f"the event {prepared.event_id} was not added: while this command ran, another recorded the same, or the "
            "user was erased. Run it again to see which"
        )
    return record


def require_text(text: str, what: str) -> str:
    """Return a text without spaces around it. Raises UsageError for an empty one, and for bytes that are not UTF-8."""
    if not text.strip():
        raise UsageError(f"give {what}: it is kept on the record")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not valid UTF-8: {text!r}") from None
    return text


def operator_name(name: str | None) -> str:
    """Return the name of the operator, the login name by default. Raises UsageError if the machine has none."""
    if name is not None:
        return require_text(name, "the operator (--operator)")
    if login := login_name():
        return login
    raise UsageError("this account has no login name: say who you are with --operator")


def login_name() -> str | None:
    """Return the login name of this account; None if it has none, as in a container that runs under any UID."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _unable(policy: Policy, rules: Rules) -> str:
    return f"the policy in force, {policy.name} {rules.version}, does not say how, so"


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
