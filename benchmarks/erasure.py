"""The cost of erasing users, compared with reading everything.

Compacted lakes of a year with BENCH_EVENTS events (300,000 and 1,000,000), 30 per user. In each: one user by name; ten
in one pass; one known by a tombstone only, so that the user_ids of all events are read. For comparison, all files are
read whole, as an erasure without filters does at least, and the dedup index is rebuilt.

Then the warehouse and the histories, which a refresh has brought up to date: one user and ten are removed from both,
under a policy with completions, and the warehouse is published. For comparison both are rebuilt, as after an erasure
whose events are not known.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc

from benchmarks.lakes import AS_OF, make_lake
from benchmarks.report import require_count, save_results
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.erasure import erase_users
from pipelines.lake.files import read_file
from pipelines.lake.index import forget_erased, open_index
from pipelines.lake.tables import Lake, data_files
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.lake.upkeep import compact
from pipelines.reputation.derive import Draft, open_draft
from pipelines.reputation.histories import delete_histories, histories_folder
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import Settings

EVENTS = tuple(int(count) for count in os.environ.get("BENCH_EVENTS", "300_000,1_000_000").split(","))
_EVENTS_BY_USER = 30
_POLICY = load_policy("ride-hailing-last-50")
_COLUMNS = ("events", "step", "seconds", "processor s", "files rewritten", "events removed")
_Row = tuple[str, float, float, int, int]


def run(folder: Path) -> None:
    """Make lakes, or use those in `folder`, and erase users from them."""
    rows = [(events, *row) for events in EVENTS for row in _erase_from(folder / str(events), events)]
    save_results("erasure", _COLUMNS, rows, "processor s", policy=_POLICY.name)


def _erase_from(folder: Path, events: int) -> list[_Row]:
    lake = make_lake(folder / "lake", events, events // _EVENTS_BY_USER)
    compact(lake, 2)
    names = _some_users(lake)
    return [*_measure_lake(folder, lake, names), *_measure_warehouse(folder, lake, names[12:])]


def _measure_lake(folder: Path, lake: Lake, names: list[str]) -> list[_Row]:
    index = folder / "index"
    _open_index(index, lake)
    rows = [_measure("one user, by name", lake, lambda: _erase(folder, lake, names[:1]))]
    rows.append(_measure("its ids, from the index", lake, lambda: _forget(index, lake)))
    rows.append(_measure("ten users, in one pass", lake, lambda: _erase(folder, lake, names[1:11])))
    rows.append(_measure("one user, by tombstone", lake, lambda: _erase_by_tombstone(folder, lake, names[11])))
    rows.append(_measure("reading all files whole", lake, lambda: _read_all(lake, names[12])))
    shutil.rmtree(index)
    rows.append(_measure("rebuilding the index", lake, lambda: _open_index(index, lake)))
    return rows


def _measure_warehouse(folder: Path, lake: Lake, names: list[str]) -> list[_Row]:
    warehouse = folder / "warehouse" / "warehouse.duckdb"
    with open_draft(warehouse) as draft:
        _refresh(draft, lake, minutes=0)
        _refresh(draft, lake, minutes=1)  # makes the histories
        rows: list[_Row] = []
        for minutes, (step, users) in enumerate((("one user", names[:1]), ("ten users", names[1:11])), 2):
            removed = _erase(folder, lake, users)
            draft.discard()
            work = _refreshing(draft, lake, minutes)
            rows.append((*_measure(f"{step}, from the warehouse", lake, work)[:4], removed))
        rows.append(_measure("rebuilding the warehouse", lake, lambda: _rebuild(draft, lake, minutes=4)))
    return rows


def _measure(step: str, lake: Lake, work: Callable[[], int]) -> _Row:
    before = set(data_files(lake.table("events")))
    started, processor = time.perf_counter(), time.process_time()
    removed = work()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return step, seconds, processor, len(before - set(data_files(lake.table("events")))), removed


def _some_users(lake: Lake) -> list[str]:
    users = read_file(data_files(lake.table("events"))[0], ["user_id"])["user_id"]
    return pc.unique(users).to_pylist()[:30]


def _erase(folder: Path, lake: Lake, user_ids: list[str]) -> int:
    return erase_users(lake, open_tombstones(lake, Settings(data_dir=folder)), user_ids).events


def _erase_by_tombstone(folder: Path, lake: Lake, user_id: str) -> int:
    tombstones = open_tombstones(lake, Settings(data_dir=folder))
    return erase_users(lake, tombstones, [], {tombstone(user_id.encode(), tombstones.lake_id)}).events


def _forget(index: Path, lake: Lake) -> int:
    forget_erased(index, lake, lake.table("events"))
    return 0


def _read_all(lake: Lake, user_id: str) -> int:
    """Find a user by reading every file whole; nothing is removed."""
    found = (pc.equal(read_file(path)["user_id"], user_id) for path in data_files(lake.table("events")))
    require_count("users found", int(sum(pc.sum(rows).as_py() or 0 for rows in found) > 0), 1)
    return 0


def _open_index(index: Path, lake: Lake) -> int:
    with closing(open_index(index, lake, lake.table("events"))) as opened:
        require_count("ids in the index", sum(map(len, opened.runs.runs)), _count(lake))
    return 0


def _count(lake: Lake) -> int:
    return sum(len(read_file(path, ["offset"])) for path in data_files(lake.table("events")))


def _refreshing(draft: Draft, lake: Lake, minutes: int) -> Callable[[], int]:
    """Return the refresh and publication after an erasure; it fails if anything is rebuilt."""

    def refresh() -> int:
        require_count("users recomputed, of all", int(_refresh(draft, lake, minutes) is None), 1)
        return 0

    return refresh


def _refresh(draft: Draft, lake: Lake, minutes: int) -> str | None:
    derived = draft.refresh(take_snapshot(lake), _POLICY, AS_OF + timedelta(minutes=minutes))
    draft.publish()
    return derived.rebuild_reason


def _rebuild(draft: Draft, lake: Lake, minutes: int) -> int:
    """Rebuild and publish the warehouse, and the histories with the refresh after it."""
    delete_histories(histories_folder(draft.path))
    draft.rebuild(take_snapshot(lake), _POLICY, AS_OF + timedelta(minutes=minutes))
    draft.publish()
    draft.refresh(take_snapshot(lake), _POLICY, AS_OF + timedelta(minutes=minutes))
    return 0
