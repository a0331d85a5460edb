"""A refresh after a commit compared with a rebuild, by the size of the commit and of the history.

It measures scores as they are served, then the same with the trends and the published file, in one run on one lake.
"""

import time
from datetime import datetime, timedelta
from pathlib import Path
from shutil import rmtree

from benchmarks.lakes import AS_OF, add_events, make_lake
from benchmarks.report import save_results
from pipelines.lake.commit_log import take_snapshot
from pipelines.reputation.derive import Draft, open_draft
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy

_HISTORIES = ((1_000_000, 50_000), (5_000_000, 250_000), (20_000_000, 1_000_000))
_COMMITS = (500, 5_000, 20_000)
_COLUMNS = ("events", "users", "policy", "commit", "touched", "seconds", "published", "of a rebuild", "with publishing")


def run(folder: Path) -> None:
    """Measure the default policy on every history, and one whose ratings need completed rides on the largest."""
    rows: list[tuple[object, ...]] = []
    for events, users in _HISTORIES:
        policies = ["default", "ride-hailing-last-50"] if events == _HISTORIES[-1][0] else ["default"]
        for day, name in enumerate(policies):
            rows += _measure_lake(
                folder / f"lake-{events}", events, users, load_policy(name), AS_OF + timedelta(days=day)
            )
    save_results(
        "refresh",
        _COLUMNS,
        rows,
        "seconds",
        note="commit 0 is the rebuild; the first refresh, which orders by user, is not shown",
    )


def _measure_lake(root: Path, events: int, users: int, policy: Policy, start: datetime) -> list[tuple[object, ...]]:
    lake = make_lake(root, events, users)
    rmtree(root / "warehouse", ignore_errors=True)
    with open_draft(root / "warehouse" / "warehouse.duckdb") as draft:
        rebuilt = draft.rebuild(take_snapshot(lake), policy, start)
        published = _publish(draft)
        rows: list[tuple[object, ...]] = [
            (events, users, policy.name, 0, rebuilt.affected_users, rebuilt.seconds, published, 1.0, 1.0)
        ]
        whole = rebuilt.seconds + published
        for number, size in enumerate((1, *_COMMITS)):
            as_of = start + timedelta(minutes=number + 1)
            add_events(lake, size, users, int((as_of - timedelta(seconds=30)).timestamp()) * 1_000_000, 1)
            derived = draft.refresh(take_snapshot(lake), policy, as_of)
            published = _publish(draft)
            if size > 1:
                shares = (derived.seconds / rebuilt.seconds, (derived.seconds + published) / whole)
                rows.append(
                    (events, users, policy.name, size, derived.affected_users, derived.seconds, published, *shares)
                )
    return rows


def _publish(draft: Draft) -> float:
    started = time.monotonic()
    draft.publish()
    return time.monotonic() - started
