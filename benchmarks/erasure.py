"""The cost of erasing users by what they touch, against reading everything.

A compacted lake of a year, without warehouse and documents, of BENCH_EVENTS events (5,000,000). Erased in turn: one
user by name; ten in one pass; one known by a tombstone only, so that the user_ids of all events are read. For
comparison, all files are read whole, as an erasure without filters does at least, and the dedup index is rebuilt.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow.compute as pc

from benchmarks.lakes import make_lake
from benchmarks.report import require_count, save_results
from pipelines.lake.erasure import erase_users
from pipelines.lake.files import read_file
from pipelines.lake.index import forget_erased, open_index
from pipelines.lake.tables import Lake, data_files
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.lake.upkeep import compact
from pipelines.settings import Settings

EVENTS = int(os.environ.get("BENCH_EVENTS", "5_000_000"))
_EVENTS_BY_USER = 30
_COLUMNS = ("step", "seconds", "processor s", "files rewritten", "events removed")


def run(folder: Path) -> None:
    """Make a lake, or use the one in `folder`, and erase users from it."""
    lake = make_lake(folder / "lake", EVENTS, EVENTS // _EVENTS_BY_USER)
    compact(lake, 2)
    index = folder / "index"
    _open_index(index, lake)
    names = _some_users(lake)
    rows = [_measure("one user, by name", lake, lambda: _erase(folder, lake, names[:1]))]
    rows.append(_measure("its ids, from the index", lake, lambda: _forget(index, lake)))
    rows.append(_measure("ten users, in one pass", lake, lambda: _erase(folder, lake, names[1:11])))
    rows.append(_measure("one user, by tombstone", lake, lambda: _erase_by_tombstone(folder, lake, names[11])))
    rows.append(_measure("reading all files whole", lake, lambda: _read_all(lake, names[12])))
    shutil.rmtree(index)
    rows.append(_measure("rebuilding the index", lake, lambda: _open_index(index, lake)))
    files = data_files(lake.table("events"))
    save_results("erasure", _COLUMNS, rows, "processor s", events=EVENTS, files=len(files))


def _measure(step: str, lake: Lake, work: Callable[[], int]) -> tuple[str, float, float, int, int]:
    before = set(data_files(lake.table("events")))
    started, processor = time.perf_counter(), time.process_time()
    removed = work()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return step, seconds, processor, len(before - set(data_files(lake.table("events")))), removed


def _some_users(lake: Lake) -> list[str]:
    users = read_file(data_files(lake.table("events"))[0], ["user_id"])["user_id"]
    return pc.unique(users).to_pylist()[:20]


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
