"""The policy in force: the one activated last, recorded in the lake; before any activation, that of the settings.

Owns the table `policies`. The policy in force at any past moment can be looked up, so that a score served then can be
explained by the rules of that time.
"""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import duckdb
import pyarrow as pa

from pipelines.errors import PolicyError
from pipelines.lake.tables import POLICIES, Lake, data_files, read_rows
from pipelines.reputation.policy import Policy

_MINIMUM_GAP = timedelta(microseconds=1)


def activate(lake: Lake, policy: Policy) -> bool:
    """Put a policy in force from now on, durably; return False if it was in force already.

    After a crash either the previous policy or this one is in force. Raises PolicyError for a version that was in force
    with other rules: a version must identify the rules of a score.
    """
    from pipelines.lake.commit import append_file  # noqa: PLC0415 - loads the decoders, which readers do not need

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
    since = max(now, activations[-1][1] + _MINIMUM_GAP) if activations else now  # the clock may have been set back
    row = {"name": policy.name, "version": policy.version, "policy": policy.to_json(), "activated": since}
    append_file(lake, "policies", pa.Table.from_pylist([row], POLICIES), uuid4().hex)
    return True


def activated(lake: Lake, known_at: datetime | None = None) -> Policy | None:
    """Return the policy activated last, or last before `known_at`; None if there is none."""
    past = [policy for policy, since in _activations(lake) if known_at is None or since < known_at]
    return past[-1] if past else None


def activated_in(connection: duckdb.DuckDBPyConnection, known_at: datetime | None = None) -> Policy | None:
    """Return what `activated` does, from the view `policies` of a connection."""
    query = (
        "SELECT policy FROM policies WHERE $known_at IS NULL OR activated < $known_at ORDER BY activated DESC LIMIT 1"
    )
    row = connection.execute(query, {"known_at": known_at}).fetchone()
    return None if row is None else Policy.model_validate_json(row[0])


def _activations(lake: Lake) -> list[tuple[Policy, datetime]]:
    """Return every activated policy with its time, oldest first.

    Files are read one by one: a scan by delta-rs leaves threads that need Python, and may abort the process at its end.
    """
    files = [read_rows("policies", file) for file in data_files(lake.table("policies"))]
    rows = pa.concat_tables([POLICIES.empty_table(), *files]).sort_by("activated").to_pylist()
    return [(Policy.model_validate_json(row["policy"]), row["activated"]) for row in rows]
