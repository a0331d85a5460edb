"""The records of all commits, and the snapshot of the lake as of the newest one.

Owns the `commits` table: a copy of the records in the log of `events`, for readers of tables. One function completes it
before every snapshot and after every batch, so a snapshot never has a commit without its record.
"""

import json
from dataclasses import replace
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import make_durable, write_file
from pipelines.lake.lake_format import has_mixed_files
from pipelines.lake.tables import (
    COMMIT_METADATA,
    COMMITS,
    COUNTS,
    TABLES,
    Lake,
    Snapshot,
    data_files,
    discard_uncommitted,
    erasures_done,
    read_rows,
    table_id,
    withdrawals_done,
)
from pipelines.lake.transactions import transactions

_FEED = "score_changes"
_COMPLETE_UPTO = "commits"
"""The application transaction that holds the version of `events` up to which `commits` is complete."""


def take_snapshot(lake: Lake) -> Snapshot:
    """Return the newest snapshot (`atomic`)."""
    return with_feed(lake, take_snapshot_without_feed(lake))


def with_feed(lake: Lake, snapshot: Snapshot) -> Snapshot:
    """Return a snapshot of a lake with the files of the feed, the newest ones if it has none yet."""
    if _FEED in snapshot.files:
        return snapshot
    table = lake.table(_FEED)
    mixed = snapshot.mixed | ({_FEED} if has_mixed_files(table) else set())
    return replace(snapshot, files={**snapshot.files, _FEED: data_files(table)}, mixed=mixed)


def take_snapshot_without_feed(lake: Lake) -> Snapshot:
    """Return the newest snapshot without the feed, which no refresh reads.

    `events` is opened first: the other rows of its commits are older.
    """
    events = lake.table("events")
    complete_commits(lake, events.version())
    tables = {"events": events} | {name: lake.table(name) for name in TABLES if name not in {"events", _FEED}}
    files = {name: data_files(table) for name, table in tables.items()}
    mixed = frozenset(name for name, table in tables.items() if has_mixed_files(table))
    removals = erasures_done(events) + withdrawals_done(events)
    return Snapshot(events.version(), files, transactions(events), table_id(events), mixed, removals, lake.root)


def complete_commits(lake: Lake, upto: int) -> None:
    """Append to `commits` the missing records of commits of `events` up to version `upto`.

    The log of `events` is the source of truth, so a crash before this, or a concurrent call in another process, is
    harmless: of two commits of the same records the later one fails, and its file is removed.
    """
    while True:
        commits = lake.table("commits")
        known = transactions(commits).get(_COMPLETE_UPTO, 0)
        if known >= upto:
            return
        rows = [row for version, actions in lake.read_log(known, upto) for row in commit_rows(version, actions)]
        actions = write_file(lake.folder("commits"), pa.Table.from_pylist(rows, COMMITS), uuid4().hex) if rows else []
        try:
            commit_actions(commits, actions, {_COMPLETE_UPTO: upto})
        except CommitFailedError:
            discard_uncommitted(lake, "commits", actions)
            continue
        make_durable([lake.entry_path("commits", commits.version() + 1)])
        return


def commits_after(snapshot: Snapshot, version: int) -> pl.DataFrame:
    """Return the commit records of a snapshot above a version, by version: version, source, days and COUNTS."""
    columns = ["version", "source", "days", *COUNTS]
    files = (read_rows("commits", path, columns) for path in snapshot.files["commits"])
    rows = pa.concat_tables([COMMITS.empty_table().select(columns), *(rows.select(columns) for rows in files)])
    frame = pl.DataFrame(pl.from_arrow(rows))
    return frame.filter(pl.col("version").is_between(version + 1, snapshot.version)).sort("version")


def topic_ids(lake: Lake, topic: str) -> set[str]:
    """Return every topic id that a topic of this name has had: more than one if it was recreated."""
    places = _places(data_files(lake.table("commits")))
    return {topic_id for topic_id, name, _ in places if name == topic}


def commit_rows(version: int, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the record of a commit of `events` as one row of COMMITS; no row for a compaction or an erasure."""
    for action in actions:
        if COMMIT_METADATA in action.get("commitInfo", {}):
            return [_row(version, json.loads(action["commitInfo"][COMMIT_METADATA]))]
    return []


def _row(version: int, record: dict[str, Any]) -> dict[str, Any]:
    for field in ("started", "committed", "first_event_time", "last_event_time"):
        record[field] = record[field] and datetime.fromisoformat(record[field])
    record["days"] = [date.fromisoformat(day) for day in record["days"]]
    return record | {count: _total(record["ranges"], count) for count in COUNTS} | {"version": version}


def _total(ranges: list[dict[str, Any]], count: str) -> int | None:
    """Return the sum of a count over the ranges of a commit; None if an older release did not take it."""
    if not all(count in offsets for offsets in ranges):
        return None
    return sum(int(offsets[count]) for offsets in ranges)


def _places(commit_files: tuple[str, ...]) -> set[tuple[str, str, int]]:
    """Return (topic_id, topic, topic_partition) of every range in `commits`."""
    return set().union(*map(_places_of_file, commit_files))


@lru_cache(maxsize=100_000)
def _places_of_file(commit_file: str) -> frozenset[tuple[str, str, int]]:
    """Read one file of `commits`; the result is cached, since files are immutable."""
    ranges = read_rows("commits", commit_file, ["ranges"]).column("ranges").combine_chunks().flatten()
    columns = (ranges.field(name).to_pylist() for name in ("topic_id", "topic", "topic_partition"))
    return frozenset(zip(*columns, strict=True))
