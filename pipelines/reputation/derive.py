"""Deriving the warehouse: every view of the reputations, computed from one snapshot of the lake, published at once.

Owns `warehouse.duckdb`: what is in it and how a new one takes the place of the old. How points come about is
`stages.py` and its SQL; opening a published warehouse is `warehouse.py`.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import rmtree
from typing import Any

import duckdb

from pipelines.lake.tables import Snapshot
from pipelines.reputation.lake_views import create_lake_views
from pipelines.reputation.policy import InForce, Policy
from pipelines.reputation.sql import statement
from pipelines.reputation.stages import epoch_us, materialize, prepare
from pipelines.reputation.views import exact, exact_type, reputation_query


@dataclass(frozen=True, slots=True)
class Derived:
    """What a derive published."""

    path: Path
    lake_version: int
    as_of: datetime
    users: int
    events: int
    """Events before as_of, whether they earned or not."""
    counted: int
    """Events before as_of that count."""
    seconds: float


def derive(snapshot: Snapshot, policy: Policy, as_of: datetime, path: Path) -> Derived:
    """Compute every table of the warehouse from one snapshot and publish it at `path`, whole or not at all.

    Readers of an older warehouse keep what they have opened. One derive a path runs at a time; a second one waits.
    A crash leaves the old warehouse in force and at most an unfinished file that the next derive removes.
    Raises UsageError for an as_of without a time zone.
    """
    started = datetime.now(UTC)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _building(path) as unfinished:
        with duckdb.connect(unfinished) as connection:
            _set_up(connection, unfinished)
            create_lake_views(connection, snapshot)
            in_force = prepare(connection, policy, as_of)
            materialize(connection, in_force)
            _create_tables(connection, in_force)
            _describe(connection, snapshot, policy, as_of)
            users, events, counted = _counts(connection)
        _replace(unfinished, path)
    seconds = (datetime.now(UTC) - started).total_seconds()
    return Derived(path, snapshot.version, as_of, users, events, counted, seconds)


@contextmanager
def _building(path: Path) -> Generator[Path]:
    """Yield the path of the unfinished file, under a lock that a crash releases, with leftovers removed."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove(unfinished)
        try:
            yield unfinished
        finally:
            _remove(unfinished)


def _remove(unfinished: Path) -> None:
    """Remove an unfinished file with its write-ahead log and spilled data."""
    unfinished.unlink(missing_ok=True)
    unfinished.with_name(f"{unfinished.name}.wal").unlink(missing_ok=True)
    rmtree(f"{unfinished}.tmp", ignore_errors=True)


def _set_up(connection: duckdb.DuckDBPyConnection, unfinished: Path) -> None:
    """Leave half of the memory to others; what does not fit spills beside the unfinished file."""
    connection.execute("SET memory_limit = '50%'")
    connection.execute("SET temp_directory = ?", [f"{unfinished}.tmp"])
    connection.execute("SET preserve_insertion_order = false")


def _create_tables(connection: duckdb.DuckDBPyConnection, policy: InForce) -> None:
    score = exact_type(policy.score_digits)
    sums = {"points": exact("sum(granted)", policy.score_digits), "ratings": exact("sum(rating)", policy.rating_digits)}
    connection.execute(statement("user_days", **sums))
    connection.execute(statement("status_periods"))
    connection.execute(statement("reputation_table", query=reputation_query(policy)))
    connection.execute(statement("trends_daily", exact=score))
    connection.execute(statement("trends_reasons"))
    connection.execute(statement("trends_scores", exact=score))


def _describe(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, policy: Policy, as_of: datetime) -> None:
    values: list[Any] = [
        snapshot.version,
        epoch_us(as_of),
        policy.name,
        policy.version,
        policy.model_dump_json(exclude_unset=True, by_alias=True),
    ]
    connection.execute(statement("snapshot_info"))
    connection.execute(
        "INSERT INTO snapshot_info VALUES (?, make_timestamptz(?), ?, ?, ?, make_timestamptz(?), ?)",
        [*values, epoch_us(datetime.now(UTC)), _karmalake_version()],
    )


def _karmalake_version() -> str:
    try:
        return version("karmalake")
    except PackageNotFoundError:
        return "unknown"


def _counts(connection: duckdb.DuckDBPyConnection) -> tuple[int, int, int]:
    row = connection.execute(statement("counts")).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has its one row; tells the type checker
    return row


def _replace(unfinished: Path, path: Path) -> None:
    """Put the finished file in the place of the published one, durably."""
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
