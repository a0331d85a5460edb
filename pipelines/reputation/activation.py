"""Which policy is in force: the one activated last, recorded in the lake; until then, the one that the settings name.

Owns the table `policies`. A policy that was in force can be found again for any moment, so that what was shown then can
be explained by the rules of then.
"""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pyarrow as pa

from pipelines.errors import PolicyError
from pipelines.lake.commit import append_file
from pipelines.lake.tables import POLICIES, Lake
from pipelines.reputation.policy import Policy

_APART = timedelta(microseconds=1)


def activate(lake: Lake, policy: Policy) -> bool:
    """Record that a policy is in force from now on, durably; return False if it was in force already.

    A crash leaves the policy of before or this one. Raises PolicyError for a version that was in force with other
    rules: a score must say by which rules it came about.
    """
    activations = _activations(lake)
    past = [before for before, _ in activations]
    if past and past[-1] == policy:
        return False
    for other in past:
        if (other.name, other.version) == (policy.name, policy.version) and other != policy:
            raise PolicyError(
                f"version {policy.version} of the policy {policy.name} was in force before, with other rules: give "
                'these a version of their own (`version = "..."`) and activate them again'
            )
    now = datetime.now(UTC)
    since = max(now, activations[-1][1] + _APART) if activations else now  # a clock may have been set back
    row = {"name": policy.name, "version": policy.version, "policy": policy.to_json(), "activated": since}
    append_file(lake, "policies", pa.Table.from_pylist([row], POLICIES), uuid4().hex)
    return True


def activated(lake: Lake, known_at: datetime | None = None) -> Policy | None:
    """Return the policy that was activated last, before known_at if that is given; None if none was."""
    past = [policy for policy, since in _activations(lake) if known_at is None or since < known_at]
    return past[-1] if past else None


def _activations(lake: Lake) -> list[tuple[Policy, datetime]]:
    """Return every policy that was put in force, and when, in the order of time."""
    rows = lake.table("policies").to_pyarrow_table().sort_by("activated").to_pylist()
    return [(Policy.model_validate_json(row["policy"]), row["activated"]) for row in rows]
