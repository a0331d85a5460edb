"""Merging accounts of one person, and renaming an account: one row of `merged_users`, by an operator, with a reason.

Events keep their user_ids; what reads them resolves these (`reputation/merged_users.py`). What a merge would do is
previewed with the rules of an explanation, over the lake and the merge.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import duckdb
import pyarrow as pa

from pipelines.errors import KarmalakeError, UsageError
from pipelines.lake.commit import append_file
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import MERGED_USERS, open_lake
from pipelines.lake.tombstones import Tombstones, open_tombstones
from pipelines.operate.operator_events import operator_name, require_text
from pipelines.refresh import policy_in_force
from pipelines.reputation.explain import explain
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.merged_users import Aliases, Merge, aliases, merge_row, merges_in
from pipelines.reputation.policy import Policy
from pipelines.settings import Settings

_MICROSECOND = timedelta(microseconds=1)
_EVENTS = "SELECT count(*) FROM events WHERE user_id IN (SELECT unnest(?))"
_MENTIONS = """
SELECT count(*)
FROM events
WHERE list_has_any(list_transform($keys, lambda key: metadata[key]), $names) AND user_id NOT IN (SELECT unnest($names))
"""
_ADD_MERGE = """
ALTER VIEW merged_users RENAME TO stored_merges;
CREATE VIEW merged_users AS FROM stored_merges UNION ALL BY NAME FROM new_merge
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What an account has: the number of events of all its user_ids, and its all-time score."""

    user_id: str
    events: int
    score: Decimal


@dataclass(frozen=True, slots=True)
class PreparedMerge:
    """A merge that is valid, with what it does."""

    merge: Merge
    before: tuple[Account, Account]
    """The account that is merged or renamed, and the one that remains."""
    after: Account
    mentions: int
    """How many events of others name the first account in a metadata key of `contract.personal_keys`."""
    is_recorded: bool
    """Whether an earlier command recorded it: nothing is written then."""


def preview_merge(settings: Settings, user_id: str, into: str, why: str, operator: str | None = None) -> PreparedMerge:
    """Return what `merge_user` would record and change; change nothing. Raises like it."""
    return _prepare(settings, _new_merge(settings, ("merge", user_id, into), why, operator))


def merge_user(settings: Settings, user_id: str, into: str, why: str, operator: str | None = None) -> PreparedMerge:
    """Merge an account into another one of the same person, durably: its events count for that one from now on.

    operator: who does it; None means the login name. The next refresh updates the scores. Safe to kill and to repeat.
    Raises UsageError without a reason, for one and the same user, for an erased one, for one that is merged already
    and for a cycle; KarmalakeError for a user without an event.
    """
    return _record(settings, preview_merge(settings, user_id, into, why, operator))


def preview_rename(
    settings: Settings, user_id: str, new_id: str, why: str, operator: str | None = None
) -> PreparedMerge:
    """Return what `rename_user` would record and change; change nothing. Raises like it."""
    return _prepare(settings, _new_merge(settings, ("rename", user_id, new_id), why, operator))


def rename_user(settings: Settings, user_id: str, new_id: str, why: str, operator: str | None = None) -> PreparedMerge:
    """Give an account another user_id, durably: one that no other user has, or a former one of the same person.

    Events of both user_ids count under the new one from now on. Arguments and errors as of `merge_user`; UsageError
    also for a new user_id of another user, and for one that the contract does not allow.
    """
    return _record(settings, preview_rename(settings, user_id, new_id, why, operator))


def _new_merge(settings: Settings, asked: tuple[str, str, str], why: str, operator: str | None) -> Merge:
    kind, old, new = asked
    for name in (old, new):
        require_text(name, "the user_id")
        if len(name.encode()) > settings.contract.max_user_id_bytes:
            raise UsageError(f"the user_id {name!r} is longer than contract.max_user_id_bytes: no event can have it")
    if old == new:
        raise UsageError(f"{old!r} is named twice: name two user_ids")
    who, said = operator_name(operator), require_text(why, "the reason (--why)")
    return Merge(uuid4().hex, old, new, kind, datetime.now(UTC), who, said, settings.contract.personal_keys)


def _prepare(settings: Settings, merge: Merge) -> PreparedMerge:
    lake = open_lake(settings.lake_root)
    with open_lake_views(take_snapshot(lake)) as connection:
        past = merges_in(connection)
        known = aliases(past)
        _require_not_erased(open_tombstones(lake, settings), merge)
        if _is_recorded(merge, past, known):
            return _preview(connection, policy_in_force(settings), known, merge, is_recorded=True)
        _require_current(known, merge)
        _require_events(connection, known, merge)
        return _preview(connection, policy_in_force(settings), known, _after(merge, past), is_recorded=False)


def _is_recorded(merge: Merge, past: list[Merge], known: Aliases) -> bool:
    """Return whether an earlier command recorded the same, and it still holds."""
    asked = (merge.kind, merge.user_id, merge.merged_into)
    is_known = any((each.kind, each.user_id, each.merged_into) == asked for each in past)
    return is_known and known.resolve(merge.user_id) == known.resolve(merge.merged_into) != merge.user_id


def _after(merge: Merge, past: list[Merge]) -> Merge:
    """Return a merge with a time after all others: the clock may have been set back."""
    at = max(merge.merged_at, past[-1].merged_at + _MICROSECOND) if past else merge.merged_at
    return replace(merge, merged_at=at)


def _require_not_erased(tombstones: Tombstones, merge: Merge) -> None:
    for name in (merge.user_id, merge.merged_into):
        if tombstones.contains(name.encode()):
            raise UsageError(f"user {name!r} was erased, and the user_id can never be used again: nothing was changed")


def _require_current(known: Aliases, merge: Merge) -> None:
    """Raise UsageError for a former user_id, except as the new name of its own person."""
    old, new = merge.user_id, merge.merged_into
    if known.resolve(old) != old:
        raise UsageError(f"user {old!r} is merged into {known.resolve(old)!r} already: name that user_id instead")
    if known.resolve(new) == old and merge.kind == "merge":
        raise UsageError(
            f"user {new!r} is merged into {old!r} already, so this would be a cycle: `karmalake user rename` makes "
            f"{new!r} the current user_id of both"
        )
    if known.resolve(new) not in {new, old}:
        raise UsageError(f"user {new!r} is merged into {known.resolve(new)!r}: name that user_id instead")


def _require_events(connection: duckdb.DuckDBPyConnection, known: Aliases, merge: Merge) -> None:
    """Raise unless the account, and the one that it is merged into, have events; a new name must be free."""
    old, new = merge.user_id, merge.merged_into
    if not _events(connection, known, old):
        raise KarmalakeError(f"the lake holds no event of user {old!r}: check the spelling")
    is_free = known.resolve(new) == old or (known.names(new) == [new] and not _events(connection, known, new))
    if merge.kind == "merge" and is_free:
        raise KarmalakeError(
            f"the lake holds no event of user {new!r}: check the spelling; `karmalake user rename` gives {old!r} a new "
            "user_id"
        )
    if merge.kind == "rename" and not is_free:
        raise UsageError(f"{new!r} is another user: `karmalake user merge` makes one person of both")


def _events(connection: duckdb.DuckDBPyConnection, known: Aliases, user_id: str) -> int:
    ((events,),) = connection.execute(_EVENTS, [known.names(user_id)]).fetchall()
    return events


def _preview(
    connection: duckdb.DuckDBPyConnection, policy: Policy, known: Aliases, merge: Merge, *, is_recorded: bool
) -> PreparedMerge:
    """Explain the scores without and with a merge."""
    now = datetime.now(UTC) + _MICROSECOND

    def account(user_id: str, known: Aliases) -> Account:
        ledger = explain(connection, policy, user_id, now)
        score = ledger["score"].to_list()[-1] if len(ledger) else Decimal(0)
        return Account(user_id, _events(connection, known, user_id), score)

    named = {"keys": list(merge.personal_keys), "names": known.names(merge.user_id)}
    ((mentions,),) = connection.execute(_MENTIONS, named).fetchall()
    before = account(merge.user_id, known), account(merge.merged_into, known)
    if not is_recorded:
        connection.register("new_merge", pa.Table.from_pylist([merge_row(merge)], MERGED_USERS))
        connection.execute(_ADD_MERGE)
    after = account(merge.merged_into, aliases(merges_in(connection)))
    return PreparedMerge(merge, before, after, mentions, is_recorded)


def _record(settings: Settings, prepared: PreparedMerge) -> PreparedMerge:
    if not prepared.is_recorded:
        rows = pa.Table.from_pylist([merge_row(prepared.merge)], MERGED_USERS)
        append_file(open_lake(settings.lake_root), "merged_users", rows, uuid4().hex)
    return prepared
