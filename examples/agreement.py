"""Whether every part of the system says the same as the service's own tables: each rating scored once, and no other."""

from collections import defaultdict
from statistics import fmean

from deltalake import DeltaTable

from examples.system import System
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.audit import audit
from pipelines.operate.verify import verify_lake
from pipelines.operate.verify_served import verify_served
from pipelines.serving.read import read_reputation

_LOW = 2


def disagreements(system: System) -> list[str]:
    """Return a sentence for each thing that does not agree; none once everything has come through."""
    rated = {f"{rating['ride']}/rated": rating for rating in system.ratings()}
    found = _scored(system)
    told, low = system.told(), {name for name, rating in rated.items() if rating["stars"] <= _LOW}
    problems = [
        (system.waiting(), "events wait in the outbox"),
        (len(rated.keys() - found), "ratings are not in the lake"),
        (len(found - rated.keys()), "events in the lake are of no rating"),
        (len(low - told), "low ratings were not told"),
        (len(told - low), "ratings were told that are not low"),
        (len(_misserved(system)), "drivers have another reputation than their ratings"),
    ]
    return [f"{count} {what}" for count, what in problems if count]


def failed_checks(system: System) -> list[str]:
    """Return what `karmalake verify` and `karmalake audit` have against the lake, the cache and the topic."""
    snapshot = take_snapshot(open_lake(system.settings.lake_root))
    checks = [*verify_lake(snapshot), *verify_served(system.settings)]
    failed = [f"{check.name}: {check.evidence}" for check in checks if check.passed is False]
    audited = audit(system.settings)
    return failed if audited.passed else [*failed, f"lost {audited.lost}, doubled {audited.doubled}"]


def _scored(system: System) -> set[str]:
    if not DeltaTable.is_deltatable(f"{system.settings.lake_root}/events"):
        return set()
    lake = open_lake(system.settings.lake_root)
    return set(lake.table("events").to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist())


def _misserved(system: System) -> list[str]:
    """Return the drivers whose document in Redis is not what their ratings come to."""
    stars: dict[str, list[int]] = defaultdict(list)
    for rating in system.ratings():
        stars[rating["driver"]].append(rating["stars"])
    wrong: list[str] = []
    for driver, given in stars.items():
        view = (read_reputation(driver, system.settings) or {}).get("reputation_all_time", {})
        same = view.get("rating_count") == len(given) and abs(view.get("rating_average", 0) - fmean(given)) < 1e-9
        wrong += [] if same else [driver]
    return wrong
