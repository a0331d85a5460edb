"""Consistency of the whole system with the service's tables: each rating is scored exactly once, and nothing else."""

import json
from collections import defaultdict
from statistics import fmean
from typing import Any

from deltalake import DeltaTable

from examples.system import System
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.audit import audit
from pipelines.operate.verify import verify_lake
from pipelines.operate.verify_served import verify_served
from pipelines.serving.read import read_reputation

_LOW_STARS = 2


def disagreements(system: System) -> list[str]:
    """Return a sentence for each disagreement; none once every part has processed all ratings."""
    rated = {f"{rating['ride']}/rated": rating for rating in system.ratings()}
    scored = _scored(system)
    notified, low = system.notified(), {name for name, rating in rated.items() if rating["stars"] <= _LOW_STARS}
    problems = [
        (system.pending(), "events are pending in the outbox"),
        (len(rated.keys() - scored), "ratings are not in the lake"),
        (len(scored - rated.keys()), "events in the lake belong to no rating"),
        (len(low - notified), "low ratings were not sent to support"),
        (len(notified - low), "ratings sent to support are not low"),
        (len(_levels_reached(system).items() ^ system.messages().items()), "messages about levels are wrong"),
        (len(_wrongly_served(system)), "drivers have a reputation that differs from their ratings"),
    ]
    return [f"{count} {problem}" for count, problem in problems if count]


def failed_checks(system: System) -> list[str]:
    """Return the failed checks of `karmalake verify` and `karmalake audit`."""
    snapshot = take_snapshot(open_lake(system.settings.lake_root))
    checks = [*verify_lake(snapshot), *verify_served(system.settings)]
    failed = [f"{check.name}: {check.evidence}" for check in checks if check.passed is False]
    audited = audit(system.settings)
    return failed if audited.passed else [*failed, f"lost {audited.lost}, duplicated {audited.duplicated}"]


def _scored(system: System) -> set[str]:
    if not DeltaTable.is_deltatable(f"{system.settings.lake_root}/events"):
        return set()
    lake = open_lake(system.settings.lake_root)
    return set(lake.table("events").to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist())


def _levels_reached(system: System) -> dict[str, tuple[str, str]]:
    """Return the drivers whom the feed in the lake shows to have risen to a level, as `System.messages`."""
    if not DeltaTable.is_deltatable(f"{system.settings.lake_root}/score_changes"):
        return {}
    rows = open_lake(system.settings.lake_root).table("score_changes").to_pyarrow_table().to_pylist()
    told: dict[str, tuple[str, str]] = {}
    for row in rows:
        before, after = (json.loads(row[side] or "{}") for side in ("before", "after"))
        if before and after and before["level"] != after["level"] and _score(before) < _score(after):
            moment = "".join(filter(str.isalnum, row["as_of"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")))
            told[f"change-{row['number']}-{moment}"] = row["user_id"], f"You are {after['level']} now"
    return told


def _score(shown: dict[str, Any]) -> int:
    return shown["all_time_score"]


def _wrongly_served(system: System) -> list[str]:
    """Return the drivers whose document in Redis differs from their ratings."""
    stars: dict[str, list[int]] = defaultdict(list)
    for rating in system.ratings():
        stars[rating["driver"]].append(rating["stars"])
    wrong: list[str] = []
    for driver, given in stars.items():
        view = (read_reputation(driver, system.settings) or {}).get("reputation_all_time", {})
        same = view.get("rating_count") == len(given) and abs(view.get("rating_average", 0) - fmean(given)) < 1e-9
        wrong += [] if same else [driver]
    return wrong
