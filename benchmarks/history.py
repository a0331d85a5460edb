"""Scaling with the history, to 100 million events: memory of ingest, rebuilds, queries, bytes.

One lake grows. At each size it is compacted; a separate process drains new events into it while its memory is sampled;
scores are rebuilt; and notebook queries run, each on a newly opened warehouse. A rebuild is compared with what DuckDB
needs to read the columns that scores depend on and group them by user and day, and to store the events sorted by user
in a file, too. Memory is anonymous pages only: the index is mapped files, which the system may evict.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from os import environ
from pathlib import Path
from shutil import rmtree

import duckdb

from benchmarks.lakes import AS_OF, make_lake, make_rows
from benchmarks.report import require_success, save_results
from pipelines.bus.topics import ensure_topic
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import produce
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.index import open_index
from pipelines.lake.tables import Lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.reputation.derive import open_draft
from pipelines.reputation.lake_views import create_lake_views
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings

SIZES = ((1_000_000, 50_000), (10_000_000, 500_000), (100_000_000, 1_000_000))
_DRAINED, _SENT = 1_000_000, 50_000
_GROUP = """
CREATE TABLE grouped AS
SELECT user_id, event_time::DATE, action_type, count(*), sum(metadata['rating']::DOUBLE)
FROM events
GROUP BY ALL
"""
_STORE = """
CREATE TABLE sorted AS
SELECT user_id, event_time, event_id, action_type, metadata
FROM events
ORDER BY ALL;
CHECKPOINT
"""
_USER = "user-4711"
_QUERIES: dict[str, Callable[[Warehouse], object]] = {
    "events a day": lambda warehouse: warehouse.sql("SELECT event_day, action_type, count(*) FROM events GROUP BY ALL"),
    "one user": lambda warehouse: warehouse.events(_USER),
    "explanation": lambda warehouse: warehouse.explain(_USER),
    "trends": lambda warehouse: warehouse.trend("daily"),
}
_MEMORY = re.compile(r"RssAnon:\s+(\d+) kB")


def run(folder: Path) -> None:
    """Grow one lake through all sizes."""
    bare = Settings(data_dir=folder / "data")
    start(bare)
    try:
        settings = with_local_endpoints(bare)
        ensure_topic(settings.kafka)
        rows = [_of_size(settings, number, *size) for number, size in enumerate(SIZES)]
        save_results(
            "history", list(rows[0]), [list(row.values()) for row in rows], "drain MB", record_bytes=_record_bytes()
        )
    finally:
        stop(bare)


def _of_size(settings: Settings, number: int, events: int, users: int) -> dict[str, int | float]:
    lake = make_lake(settings.lake_root, events, users)
    row: dict[str, int | float] = {"events": events, "users": users}
    row["compaction s"] = _seconds(lambda: compact(lake, 2))
    vacuum(lake, 0)
    size = sum(path.stat().st_size for path in Path(lake.root, "events").rglob("*.parquet"))
    row["bytes an event"] = size / lake.table("events").count()
    row["index rebuild ids/s"] = round(events / _seconds(lambda: _rebuild_index(settings, lake)))
    row |= _drain(settings, number, users)
    row |= _floors(lake, settings.data_dir / "floor.duckdb")
    with open_draft(settings.warehouse_path) as draft:
        row["rebuild s"] = _seconds(lambda: draft.rebuild(take_snapshot(lake), load_policy("default"), AS_OF))
        draft.publish()
    row["rebuild / grouped"] = row["rebuild s"] / row["grouped s"]
    row["rebuild / stored"] = row["rebuild s"] / (row["grouped s"] + row["stored s"])
    return row | {f"{name} s": _query_seconds(settings.warehouse_path, query) for name, query in _QUERIES.items()}


def _rebuild_index(settings: Settings, lake: Lake) -> None:
    rmtree(settings.index_dir, ignore_errors=True)
    with closing(open_index(settings.index_dir, lake, lake.table("events"))):
        pass


def _drain(settings: Settings, number: int, users: int) -> dict[str, int | float]:
    """Drain new events in another process; return its rate and peak memory."""
    rows = make_rows(10**12 + number * _DRAINED, _DRAINED, users, int(AS_OF.timestamp()) * 1_000_000, 1)
    produce(settings.kafka, (rows.slice(first, _SENT).select(EVENT.names) for first in range(0, _DRAINED, _SENT)))
    environment = environ | {"KARMALAKE_DATA_DIR": str(settings.data_dir)}
    begun, peak_kb = time.monotonic(), 0
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "drain"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            match = _MEMORY.search(status.read_text())
            peak_kb = max(peak_kb, int(match[1]) if match else 0)
            time.sleep(0.01)
    seconds = time.monotonic() - begun
    require_success("karmalake drain", process)
    return {"drain events/s": round(_DRAINED / seconds), "drain MB": round(peak_kb / 1024)}


def _floors(lake: Lake, file: Path) -> dict[str, int | float]:
    """Return the seconds in which DuckDB groups the events of a lake, and stores them sorted, in a new file."""
    file.unlink(missing_ok=True)
    with duckdb.connect(file) as connection:
        create_lake_views(connection, take_snapshot(lake))
        connection.execute("SET TimeZone = 'UTC'")
        return {
            "grouped s": _seconds(lambda: connection.execute(_GROUP)),
            "stored s": _seconds(lambda: connection.execute(_STORE)),
        }


def _query_seconds(path: Path, query: Callable[[Warehouse], object]) -> float:
    with Warehouse(path) as warehouse:
        return _seconds(lambda: query(warehouse))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _record_bytes() -> float:
    rows = make_rows(0, 10_000, 1_000_000, 0, 1).select(EVENT.names)
    return sum(map(len, encode(rows).to_pylist())) / len(rows)
