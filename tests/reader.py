"""A lake reader in a separate process: reads each new version and compares it with the log (`atomic`).

Run as `python -m tests.reader EVENTS_FOLDER STOP_FILE`; it reads until STOP_FILE exists, and prints the number of
versions read. A partial or duplicated commit, or an error, ends it with an exception.
"""

import json
import sys
from pathlib import Path

import duckdb
from deltalake import DeltaTable

from tests.services.waiting import wait_for


def main() -> None:
    """Read versions until the stop file exists."""
    table, stop = Path(sys.argv[1]), Path(sys.argv[2])
    log = table / "_delta_log"
    accepted: dict[str, int] = {}
    upto = versions = 0
    while True:
        newer = log / f"{upto + 1:020}.json"
        wait_for("another version or the end", lambda: newer.exists() or stop.exists())  # noqa: B023 - called at once
        if not newer.exists():
            break
        snapshot = DeltaTable(table)
        for version in range(upto + 1, snapshot.version() + 1):
            accepted |= accepted_by(log / f"{version:020}.json")
        upto, versions = snapshot.version(), versions + 1
        stored = rows_by_batch(snapshot.file_uris())
        expected = {batch_id: rows for batch_id, rows in accepted.items() if rows}
        assert stored == expected, f"version {upto}: {set(stored.items()) ^ set(expected.items())}"
    print(versions)  # noqa: T201 - its answer


def accepted_by(entry: Path) -> dict[str, int]:
    """Return the batch of a log entry with its number of accepted events; empty for an entry of maintenance."""
    for line in entry.read_text(encoding="utf-8").splitlines():
        record_json = json.loads(line).get("commitInfo", {}).get("karmalake")
        if record_json is not None:
            record = json.loads(record_json)
            return {record["batch_id"]: sum(offsets["accepted"] for offsets in record["ranges"])}
    return {}


def rows_by_batch(files: list[str]) -> dict[str, int]:
    """Return the number of rows of each batch."""
    if not files:
        return {}
    rows = duckdb.execute("SELECT batch_id, count(*) FROM read_parquet($files) GROUP BY ALL", {"files": files})
    return dict(rows.fetchall())


if __name__ == "__main__":
    main()
