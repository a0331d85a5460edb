"""What the feed said last of each user: a cache of the lake's table `score_changes`, in an SQLite file.

It names the last number that it has. After a crash it lacks the last changes, which `sync` reads from the lake; after
an erasure, or beside another lake, it is rebuilt from the newest change of each user. A look-up costs by the users
asked for, not by all.
"""

import sqlite3
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import DEFECT, exit_status_of
from pipelines.formats import FEED_STATE
from pipelines.lake.score_changes import FeedPosition, read_in_order
from pipelines.lake.tables import SCORE_CHANGES, table_id
from pipelines.reputation.recent_events import SINCE

SAID = pl.Schema(
    {"user_id": pl.String, "lake_version": pl.Int64, "as_of_us": pl.Int64, "policy": pl.String, "shown": pl.String}
)
"""What was said of users, and the publication that said it."""
_TABLES = """
CREATE TABLE said (
    user_id TEXT PRIMARY KEY,
    lake_version INTEGER NOT NULL,
    as_of_us INTEGER NOT NULL,
    policy TEXT NOT NULL,
    shown TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX said_since ON said (user_id, lake_version, as_of_us);
CREATE TABLE position (number INTEGER NOT NULL, table_id TEXT NOT NULL, erasures INTEGER NOT NULL);
"""
_SAID = "SELECT user_id, lake_version, as_of_us, policy, shown FROM said"
_SINCE = "SELECT user_id, lake_version, as_of_us FROM said INDEXED BY said_since"
"""The index has all of it, without the long texts between."""
_USERS = "SELECT user_id FROM said INDEXED BY said_since"
_FETCHED_USERS = 10_000
"""Rows to hold as Python values at a time."""
_MAX_PARAMETERS = 900
"""Of one statement; SQLite allows 999 in all versions. An array as JSON would cut a user_id at a NUL."""
_SAY = "INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?, ?)"
_MOVE = "UPDATE position SET number = ? WHERE number = ?"
_STORED = ["user_id", "after", "lake_version", "as_of", "policy"]
_BUSY_SECONDS = 60.0
_MAPPED_BYTES = 1 << 40
"""SQLite reads so much of the file through a mapping, without a copy, or as much of it as its own limit allows. That is
safe where no process shortens a file: none vacuums it, and one that is replaced is unlinked, which leaves mappings."""


class FeedState:
    """The state in one file, which is created if it is missing, and replaced if it cannot be used. Not thread-safe."""

    def __init__(self, file: Path) -> None:
        self._file = file
        make_private_dir(file.parent)
        self._database = _open(file)

    def sync(self, table: DeltaTable, position: FeedPosition) -> None:
        """Bring the state to the version of a handle of `score_changes`, whose position is given."""
        known = self._position()
        wanted = (table_id(table), position.erasures)
        if known is None or known[1:] != wanted or known[0] > position.number:
            self._restart(table, position)
            known = (0, *wanted)
        if known[0] < position.number:
            self._take_over(table, known[0], position.number)

    def of(self, users: pl.Series) -> pl.DataFrame:
        """Return what was said of those of some users (String, each once) who were shown, as SAID, in no order."""
        return pl.DataFrame(self._rows_of(_SAID, users), SAID, orient="row")

    def since(self, users: pl.Series) -> pl.DataFrame:
        """Return the publication (SINCE) that last spoke of each of some users (String, each once), where one did."""
        return pl.DataFrame(self._rows_of(_SINCE, users), SINCE, orient="row")

    def _rows_of(self, query: str, users: pl.Series) -> list[tuple[Any, ...]]:
        found = list[tuple[Any, ...]]()
        for part in users.to_frame().iter_slices(_MAX_PARAMETERS):
            marks = ",".join("?" * part.height)
            found += self._database.execute(f"{query} WHERE user_id IN ({marks})", part.to_series().to_list())
        return found

    def users(self) -> pl.Series:
        """Return all users (String) who were shown."""
        rows, none = self._database.execute(_USERS), pl.Series("user_id", [], dtype=pl.String)
        parts = iter(lambda: rows.fetchmany(_FETCHED_USERS), [])
        return pl.concat([none, *(pl.Series("user_id", [user for (user,) in part]) for part in parts)])

    def _take_over(self, table: DeltaTable, known: int, number: int) -> None:
        """Take over the changes of a handle's version from one number on to the last one, some at a time."""
        for rows in read_in_order(table, known):
            last = rows["number"][-1].as_py()
            self.apply(rows, known, last)
            known = last
        if known < number:  # the last changes were of erased users
            self.apply(SCORE_CHANGES.empty_table(), known, number)

    def apply(self, rows: pa.Table, before: int, number: int) -> None:
        """Take over rows of `score_changes`, by number, from one number to another.

        Does nothing if another process with this file has taken over other changes: `sync` reads what is missing.
        """
        changes = _newest(rows)
        said, gone = changes.filter(pl.col("shown").is_not_null()), changes.filter(pl.col("shown").is_null())
        with self._database:
            if self._database.execute(_MOVE, (number, before)).rowcount == 1:
                self._database.executemany(_SAY, said.select(SAID.names()).iter_rows())
                self._database.executemany("DELETE FROM said WHERE user_id = ?", gone.select("user_id").iter_rows())

    def renew(self) -> None:
        """Begin with an empty file, for one that turned out to be damaged; `sync` fills it."""
        self.close()
        delete_feed_state(self._file)
        self._database = _open(self._file)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _position(self) -> tuple[int, str, int] | None:
        return self._database.execute("SELECT number, table_id, erasures FROM position").fetchone()

    def _restart(self, table: DeltaTable, position: FeedPosition) -> None:
        """Begin with an empty file: one that is emptied still has the bytes of erased users."""
        self.renew()
        with self._database:
            self._database.execute("INSERT INTO position VALUES (0, ?, ?)", (table_id(table), position.erasures))


def _newest(rows: pa.Table) -> pl.DataFrame:
    """Return the newest change of each user in rows of `score_changes`, by number, as SAID.

    `shown` is null of a user who is gone.
    """
    moment = pl.col("as_of").dt.epoch("us").alias("as_of_us")
    said = pl.DataFrame(rows.select(_STORED)).rename({"after": "shown"}).with_columns(moment)
    return said.select(SAID.names()).unique("user_id", keep="last", maintain_order=True)


def delete_feed_state(file: Path) -> None:
    """Delete the state, which names every user; the next publication rebuilds it from the lake."""
    for path in (file, *(file.with_name(f"{file.name}{suffix}") for suffix in ("-wal", "-shm", "-journal"))):
        path.unlink(missing_ok=True)


def _open(file: Path) -> sqlite3.Connection:
    """Open a file; one that is damaged or of another format is replaced. Raises sqlite3.Error for one in use."""
    try:
        return _connect(file)
    except sqlite3.DatabaseError as error:
        if exit_status_of(error) != DEFECT:
            raise
        delete_feed_state(file)
        return _connect(file)


def _connect(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        _prepare(database)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
    (found,) = database.execute("PRAGMA user_version").fetchone()
    if found not in {0, FEED_STATE.number}:
        raise sqlite3.DatabaseError(f"format {found}")
    if not found:
        database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {FEED_STATE.number}; COMMIT")
