"""Deriving the warehouse: every view of the reputations, from nothing or from what a commit touched, published at once.

Owns the life of `warehouse.duckdb`. A draft is a copy that only its holder sees: it is rebuilt or refreshed, as often
as wanted, and published whole. A crash leaves the published warehouse in force and the draft to be thrown away, so no
step here has to be safe by itself. What the tables are is `tables.py`; opening a published warehouse, `warehouse.py`.
"""

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import copyfile
from typing import Any

import duckdb
import polars as pl

from pipelines.errors import UsageError
from pipelines.lake.tables import Snapshot
from pipelines.private import private_folder
from pipelines.reputation.by_user import attach_by_user, bring_up, by_user_path, last_batch, read_commits, transaction
from pipelines.reputation.database_file import alone, is_held, put_in_place, remove
from pipelines.reputation.lake_views import create_lake_views
from pipelines.reputation.policy import InForce, Policy
from pipelines.reputation.replace import replace_rows
from pipelines.reputation.sql import one_row, statement
from pipelines.reputation.stages import epoch_us, materialize, prepare, set_moment
from pipelines.reputation.tables import OF_TOUCHED, pending_trends, recipe, trends, user_tables
from pipelines.reputation.touched import find_touched, recall
from pipelines.reputation.warehouse import stored_info

_LOG = logging.getLogger(__name__)
_ALWAYS_REFRESHED = 10_000
_MOST_TOUCHED = 0.2
"""Above this share of the users, and above that number of them, a rebuild costs less than a refresh."""


Engine = Callable[[duckdb.DuckDBPyConnection, Snapshot, InForce, datetime], None]
"""Creates the tables of a draft in which the steps are prepared, as of a moment."""


@dataclass(frozen=True, slots=True)
class Derived:
    """What a derivation came to."""

    path: Path
    lake_version: int
    as_of: datetime
    users: int
    events: int
    """Events before as_of, whether they earned or not."""
    counted: int
    """Events before as_of that count."""
    seconds: float
    rebuilt: str | None
    """Why everything was computed from nothing; None if only what was touched."""
    touched: int
    """Users who were computed anew."""
    changed: pl.Series | None
    """The users whose row in `reputation` is another now, or no more; None: any may be."""


def derive(snapshot: Snapshot, policy: Policy, as_of: datetime, path: Path) -> Derived:
    """Compute every table of the warehouse from one snapshot and publish it at `path`, whole or not at all.

    Readers of an older warehouse keep what they have opened. One draft a path is in work at a time; others wait.
    Raises UsageError for an as_of without a time zone, or when another process keeps the warehouse for itself.
    """
    with open_draft(path) as draft:
        derived = draft.rebuild(snapshot, policy, as_of)
        draft.publish()
    return derived


def in_duckdb(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, policy: InForce, as_of: datetime) -> None:  # noqa: ARG001 - as every engine
    """Create the tables of a draft from its prepared steps, here and now; the log says how far it has come."""
    tables = user_tables(policy) | trends(policy)
    materialize(connection, policy)
    _LOG.info("what each event is worth is computed (1 of %d steps)", len(tables) + 1)
    for number, (name, query) in enumerate(tables.items(), 2):
        connection.execute(statement("table", name=name, query=query))
        _LOG.info("%s is computed (%d of %d steps)", name, number, len(tables) + 1)


def is_kept(path: Path) -> bool:
    """Return whether some process has a draft of the warehouse at `path` in work now."""
    return is_held(_lock(path))


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


@contextmanager
def open_draft(path: Path) -> "Generator[Draft]":
    """Yield the draft of the warehouse at `path`, alone; on leaving, what was not published is thrown away.

    Raises UsageError when another process holds it for longer than a derivation takes.
    """
    private_folder(path.parent)
    with alone(_lock(path)):
        draft = Draft(path)
        try:
            draft.discard()
            yield draft
        finally:
            draft.discard()


class Draft:
    """The next warehouse in the making. Not for use by several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.with_name(f"{path.name}.draft")
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._snapshot: Snapshot | None = None
        self._prepared: InForce | None = None

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The draft as it stands, for reading. Raises UsageError before anything was derived."""
        if self._connection is None:
            raise UsageError(f"nothing was derived yet for {self.path}: rebuild or refresh first")
        return self._connection

    def rebuild(self, snapshot: Snapshot, policy: Policy, as_of: datetime, engine: Engine = in_duckdb) -> Derived:
        """Compute everything from a snapshot. Raises UsageError for an as_of without a time zone, and like `engine`."""
        return self._rebuild(snapshot, policy, as_of, "asked for", engine)

    def refresh(self, snapshot: Snapshot, policy: Policy, as_of: datetime) -> Derived:
        """Compute what differs from the draft, or from the published warehouse: the same rows as a rebuild gives.

        Rebuilds where that is no base to go on from (`Derived.rebuilt` says why), or where it costs less
        (`incremental-equals-rebuild`). Raises UsageError for an as_of without a time zone.
        """
        in_force = policy.at(as_of)
        why = self._why_not_continued(snapshot, in_force, as_of)
        if why is not None:
            return self._rebuild(snapshot, policy, as_of, why)
        started = time.monotonic()
        with self._discarded_on_error():
            touched = self._find_touched(snapshot, policy, as_of)
            (users,) = one_row(self.connection.execute("SELECT count(*) FROM reputation"))
            if touched > max(_ALWAYS_REFRESHED, _MOST_TOUCHED * users):
                return self._rebuild(snapshot, policy, as_of, f"{touched:,} of {users:,} users were touched")
            recall(self.connection, in_force)
            with transaction(self.connection):
                materialize(self.connection, in_force, OF_TOUCHED)
                changed = replace_rows(self.connection, user_tables(in_force, OF_TOUCHED))
                self._describe(snapshot, policy, as_of)
        return self._derived(started, None, touched, changed)

    def publish(self) -> None:
        """Put the draft in the place of the published warehouse, durably; it remains a draft to go on with."""
        info, snapshot = stored_info(self.connection), self._snapshot
        assert snapshot is not None  # noqa: S101 - tells the type checker
        with transaction(self.connection):
            create_lake_views(self.connection, snapshot)
            _compute_pending_trends(self.connection, info.policy.at(info.as_of))
        self.connection.execute("CHECKPOINT")
        next_file = self.path.with_name(f"{self.path.name}.next")
        try:
            copyfile(self._file, next_file)
            put_in_place(next_file, self.path)
        finally:
            next_file.unlink(missing_ok=True)

    def discard(self) -> None:
        """Throw the draft away; the next refresh begins at the published warehouse."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._prepared = None
        remove(self._file)

    def _rebuild(
        self, snapshot: Snapshot, policy: Policy, as_of: datetime, why: str, engine: Engine = in_duckdb
    ) -> Derived:
        started = time.monotonic()
        _LOG.info("everything is computed from nothing: %s", why)
        self.discard()
        with self._discarded_on_error():
            connection = self._open()
            read_commits(connection, snapshot)
            create_lake_views(connection, snapshot)
            engine(connection, snapshot, prepare(connection, policy, as_of), as_of)
            self._describe(snapshot, policy, as_of)
        derived = self._derived(started, why, 0, None)
        return replace(derived, touched=derived.users)

    def _why_not_continued(self, snapshot: Snapshot, policy: InForce, as_of: datetime) -> str | None:
        """Return why the draft, or the published warehouse, is no base for a refresh; None if it is."""
        if self._connection is None and not self.path.exists():
            return "nothing was derived before"
        try:
            info = stored_info(self._connection or self._copy())
        except duckdb.Error:
            return "the published warehouse is damaged, or of another version of karmalake"
        connection = self.connection
        read_commits(connection, snapshot)
        if info.recipe != recipe(policy, snapshot.lake_id):
            return "policy, rules or lake are not those of before"
        if info.lake_version > snapshot.version or info.last_batch != last_batch(connection, info.lake_version):
            return "the lake is not a later state of the one before"
        if as_of < info.as_of:
            return f"as_of lies before that of the warehouse, {info.as_of.isoformat()}"
        return "points decay with every moment" if policy.decays and as_of > info.as_of else None

    def _find_touched(self, snapshot: Snapshot, policy: Policy, as_of: datetime) -> int:
        """Bring `by_user` up to the snapshot, prepare the steps over `recalled`, and return how many are touched."""
        connection, info, in_force = self.connection, stored_info(self.connection), policy.at(as_of)
        if self._prepared != in_force:
            attach_by_user(connection, by_user_path(self.path), snapshot.lake_id)
            connection.execute(statement("refresh/recalled"))
            prepare(connection, policy, as_of, source="recalled")
            self._prepared = in_force
        set_moment(connection, as_of)
        bring_up(connection, snapshot, in_force)
        return find_touched(connection, in_force, info.lake_version, epoch_us(info.as_of))

    def _copy(self) -> duckdb.DuckDBPyConnection:
        copyfile(self.path, self._file)
        return self._open()

    def _open(self) -> duckdb.DuckDBPyConnection:
        """Open the draft's file. Half of the memory is left to others; what does not fit spills beside the file.

        Only a publication needs the file to be whole, so nothing before it is worth a checkpoint.
        """
        connection = self._connection = duckdb.connect(self._file)
        connection.execute("SET memory_limit = '50%'")
        connection.execute("SET temp_directory = ?", [f"{self._file}.tmp"])
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET checkpoint_threshold = '1TB'")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(statement("refresh/changed_day_table"))
        return connection

    @contextmanager
    def _discarded_on_error(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def _describe(self, snapshot: Snapshot, policy: Policy, as_of: datetime) -> None:
        self._snapshot = snapshot
        values: list[Any] = [
            snapshot.version,
            epoch_us(as_of),
            policy.name,
            policy.version,
            policy.to_json(),
            epoch_us(datetime.now(UTC)),
            _karmalake_version(),
            recipe(policy.at(as_of), snapshot.lake_id),
            last_batch(self.connection, snapshot.version),
        ]
        self.connection.execute(statement("snapshot_info"))
        self.connection.execute(statement("describe"), values)

    def _derived(self, started: float, rebuilt: str | None, touched: int, changed: pl.Series | None) -> Derived:
        info = stored_info(self.connection)
        users, events, counted = one_row(self.connection.execute(statement("counts")))
        seconds = time.monotonic() - started
        return Derived(
            self.path, info.lake_version, info.as_of, users, events, counted, seconds, rebuilt, touched, changed
        )


def _compute_pending_trends(connection: duckdb.DuckDBPyConnection, policy: InForce) -> None:
    """Compute the trends of the days that changed since the last time."""
    connection.execute(statement("refresh/pending_day"))
    for name, query in pending_trends(policy).items():
        connection.execute(statement("refresh/remove_days", name=name))
        connection.execute(statement("refresh/insert_rows", name=name, query=query))
    connection.execute(statement("refresh/changed_day_table"))


def _karmalake_version() -> str:
    try:
        return version("karmalake")
    except PackageNotFoundError:
        return "unknown"
