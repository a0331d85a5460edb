"""The policy in force: the one activated last, recorded in the lake; before any activation, that of the settings.

Owns the table `policies`, which also has the canary: a policy that is served beside the one in force
(`pipelines/canary.py`) from its row to the next one, whatever that is. The policy in force at any past moment can be
looked up, so that a score served then can be explained by the rules of that time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import duckdb
import pyarrow as pa

from pipelines.errors import PolicyError, UsageError
from pipelines.lake.tables import POLICIES, Lake, Snapshot, data_files, read_rows
from pipelines.reputation.policy import Policy

_MINIMUM_GAP = timedelta(microseconds=1)
_CANARY, _CANARY_ENDED = "canary", "canary ended"


@dataclass(frozen=True, slots=True)
class Activation:
    """A policy that was put in force at a moment, or served as a canary from then on, by whom and why if known."""

    policy: Policy
    since: datetime
    operator: str | None
    why: str | None
    role: str | None


def activate(lake: Lake, policy: Policy, operator: str | None = None, why: str | None = None) -> bool:
    """Put a policy in force from now on, durably; return False if it was in force already.

    operator, why: who does it, and the reason, for the record.
    After a crash either the previous policy or this one is in force. Raises PolicyError for a version that was in force
    with other rules: a version must identify the rules of a score.
    """
    past = [each.policy for each in activations(lake)]
    if past and past[-1] == policy:
        return False
    _require_own_version(policy, past)
    _record(lake, policy, None, operator, why)
    return True


def start_canary(lake: Lake, policy: Policy, operator: str | None = None, why: str | None = None) -> bool:
    """Make a policy the canary from now on, instead of any other, durably; return False if it is already.

    Arguments as of `activate`. Raises PolicyError for a policy that could not be activated afterwards.
    """
    present = canary(lake)
    if present is not None and present.policy == policy:
        return False
    _require_own_version(policy, [each.policy for each in activations(lake)])
    _record(lake, policy, _CANARY, operator, why)
    return True


def end_canary(lake: Lake, operator: str | None, why: str) -> Policy:
    """End the canary, durably, and return its policy. Raises UsageError if there is none."""
    present = canary(lake)
    if present is None:
        raise UsageError("there is no canary: `karmalake policy activate --canary` begins one")
    _record(lake, present.policy, _CANARY_ENDED, operator, why)
    return present.policy


def canary(lake: Lake) -> Activation | None:
    """Return the canary; None if there is none."""
    recorded = _recorded(lake)
    return recorded[-1] if recorded and recorded[-1].role == _CANARY else None


def had_canary(lake: Lake) -> bool:
    """Return whether there is or was a canary."""
    return any(each.role for each in _recorded(lake))


def _require_own_version(policy: Policy, past: list[Policy]) -> None:
    for other in past:
        if (other.name, other.version) == (policy.name, policy.version) and other != policy:
            raise PolicyError(
                f"version {policy.version} of the policy {policy.name} was in force before, with other rules: give "
                'these a version of their own (`version = "..."`) and activate them again'
            )


def _record(lake: Lake, policy: Policy, role: str | None, operator: str | None, why: str | None) -> None:
    from pipelines.lake.commit import append_file  # noqa: PLC0415 - loads the decoders, which readers do not need

    now, done = datetime.now(UTC), _recorded(lake)
    since = max(now, done[-1].since + _MINIMUM_GAP) if done else now  # the clock may have been set back
    row = {"name": policy.name, "version": policy.version, "policy": policy.to_json(), "activated": since}
    row |= {"operator": operator, "why": why, "role": role}
    append_file(lake, "policies", pa.Table.from_pylist([row], POLICIES), uuid4().hex)


def activated(lake: Lake, known_at: datetime | None = None) -> Policy | None:
    """Return the policy activated last, or last before `known_at`; None if there is none."""
    past = [each.policy for each in activations(lake) if known_at is None or each.since < known_at]
    return past[-1] if past else None


def without_activations(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot whose activations are left out: what a pinned policy serves does not depend on them."""
    return replace(snapshot, files={**snapshot.files, "policies": ()})


def policy_before(lake: Lake, of_settings: Callable[[], Policy]) -> Policy:
    """Return the policy in force before the present one; before the first activation that is the one of the settings.

    of_settings: called only if no other activated policy was in force before, since its file may be gone by then.
    Raises UsageError if there is no other policy.
    """
    past = [each.policy for each in activations(lake)]
    if different := [policy for policy in past if policy != past[-1]]:
        return different[-1]
    first = of_settings()
    if not past or past[-1] == first:
        raise UsageError(
            "no other policy was in force before: `karmalake policy activate` puts one in force by its name or file"
        )
    return first


def activated_in(connection: duckdb.DuckDBPyConnection, known_at: datetime | None = None) -> Policy | None:
    """Return what `activated` does, from the view `policies` of a connection."""
    query = (
        "SELECT policy FROM policies WHERE role IS NULL AND ($known_at IS NULL OR activated < $known_at) "
        "ORDER BY activated DESC LIMIT 1"
    )
    found = connection.execute(query, {"known_at": known_at}).fetchall()
    return Policy.model_validate_json(found[0][0]) if found else None


def activations(lake: Lake) -> list[Activation]:
    """Return every activation, oldest first."""
    return [each for each in _recorded(lake) if each.role is None]


def _recorded(lake: Lake) -> list[Activation]:
    """Return every activation, and every beginning and end of a canary, oldest first.

    Files are read one by one: a scan by delta-rs leaves threads that need Python, and may abort the process at its end.
    """
    files = [read_rows("policies", file) for file in data_files(lake.table("policies"))]
    rows = pa.concat_tables([POLICIES.empty_table(), *files]).sort_by("activated").to_pylist()
    return [
        Activation(
            Policy.model_validate_json(row["policy"]), row["activated"], row["operator"], row["why"], row["role"]
        )
        for row in rows
    ]
