"""The same history through the bus (emit, then drain) and by backfill from a file, in one run."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import duckdb

from benchmarks.report import require_count, save_results
from pipelines.backfill import backfill
from pipelines.bus.topics import ensure_topic
from pipelines.drain import drain, open_drain
from pipelines.emit.producer import produce
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping, read_events

ROWS = 2_000_000
_FIRST = 1_000
MAPPING = ColumnMapping("user_id", "at", "iso", None, "action", (("rating", "rating"), ("rater_id", "rater")), "id")
HISTORY = """
COPY (
    SELECT
        md5(i::VARCHAR) AS id,
        'user-' || hash(i * 7) % 200000 AS user_id,
        'DriverRated' AS action,
        strftime(make_timestamp(1760000000000000 + i * 80000), '%Y-%m-%dT%H:%M:%S.%fZ') AS at,
        1 + hash(i) % 5 AS rating,
        'user-' || hash(i * 13) % 200000 AS rater
    FROM range($first, $last) AS numbers(i)
)
TO '{path}'
"""


def run(folder: Path) -> None:
    """Load one history of a single day in every way."""
    files = write_files(folder, ROWS)
    with filled_bus(folder / "bus", files["parquet"]) as (settings, emitted):
        drained = drain_bus(settings, ROWS)
    bus = emitted + drained
    rows = [("bus: emit and drain", bus, round(ROWS / bus), 1.0, None)]
    rows += [("bus: drain alone", drained, round(ROWS / drained), bus / drained, 1.0)]
    for ending, path in files.items():
        seconds = backfill_file(folder / ending, path, ROWS)
        rows.append((f"backfill, {ending}", seconds, round(ROWS / seconds), bus / seconds, drained / seconds))
    save_results(
        "backfill", ("way", "seconds", "events/s", "times the bus", "times drain alone"), rows, "events/s", events=ROWS
    )


def write_files(folder: Path, rows: int) -> dict[str, Path]:
    """Write one history in each format, and load its first rows: that loads the compiled loops."""
    files = {ending: folder / f"history.{ending}" for ending in ("parquet", "csv", "ndjson")}
    with duckdb.connect() as connection:
        for path in files.values():
            form = " (FORMAT json)" if path.suffix == ".ndjson" else ""
            connection.execute(HISTORY.format(path=path) + form, {"first": 0, "last": rows})
    for ending, header in (("csv", 1), ("ndjson", 0)):
        backfill_file(folder / f"first-{ending}", _first_rows(files[ending]), _FIRST - header)
    return files


@contextmanager
def filled_bus(folder: Path, path: Path) -> Generator[tuple[Settings, float]]:
    """Yield the settings of an embedded broker with the events of a file, and the seconds that emitting took."""
    bare = Settings(data_dir=folder)
    start(bare)
    try:
        settings = with_local_endpoints(bare)
        ensure_topic(settings.kafka)
        begun = time.monotonic()
        produce(settings.kafka, read_events(path, MAPPING))
        yield settings, time.monotonic() - begun
    finally:
        stop(bare)


def drain_bus(settings: Settings, rows: int) -> float:
    """Return the seconds of a drain, which must accept all rows."""
    accepted: list[int] = []
    begun = time.monotonic()
    with open_drain(settings) as ingest:
        drain(ingest, lambda record: accepted.append(record.total("accepted")))
    seconds = time.monotonic() - begun
    require_count("events drained", sum(accepted), rows)
    return seconds


def backfill_file(folder: Path, path: Path, rows: int) -> float:
    """Return the seconds of a backfill, which must accept all rows."""
    accepted: list[int] = []
    begun = time.monotonic()
    backfill(Settings(data_dir=folder), path, MAPPING, lambda record: accepted.append(record.total("accepted")))
    seconds = time.monotonic() - begun
    require_count(f"events backfilled from {path.name}", sum(accepted), rows)
    return seconds


def _first_rows(path: Path) -> Path:
    first = path.with_name(f"first-rows{path.suffix}")
    with path.open() as rows:
        first.write_text("".join(islice(rows, _FIRST)))
    return first
