"""The lake's events once more, ordered by user: what a refresh reads instead of the whole lake.

A cache in a DuckDB file of its own, which only the holder of the warehouse's lock opens. It is extended with every
commit and made anew from the lake when it is missing, damaged, or of another lake: nothing is lost with it.
Owns `by_user.event` and, for policies with a completion rule, `by_user.meeting`: who meets at which metadata value,
and when.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipelines.lake.tables import Snapshot
from pipelines.reputation.lake_views import stored_rows
from pipelines.reputation.policy import InForce
from pipelines.reputation.sql import literal, one_row, statement

_BEFORE_ALL = -1
"""The version before every commit."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What `by_user.info` says."""

    version: int
    last_batch: str | None
    lake_id: str
    duckdb_version: str
    completions: str


def attach_by_user(connection: duckdb.DuckDBPyConnection, path: Path, lake_id: str) -> None:
    """Attach the file at `path` as `by_user`; one that cannot be read, or is of another lake, is begun again.

    The file goes then, not only its rows: those of an erased user would stay in its free blocks.
    """
    attach = f"ATTACH IF NOT EXISTS {literal(str(path))} AS by_user"
    try:
        connection.execute(attach)
        connection.execute(statement("refresh/by_user_info"))
        others = connection.execute("SELECT 1 FROM by_user.info WHERE lake_id <> ?", [lake_id]).fetchall()
    except duckdb.Error:
        others = [()]
    if others:
        connection.execute("DETACH DATABASE IF EXISTS by_user")
        forget_by_user(path)
        connection.execute(attach)
        connection.execute(statement("refresh/by_user_info"))


def by_user_path(warehouse: Path) -> Path:
    """Return where the file is that belongs to a warehouse."""
    return warehouse.with_name("by_user.duckdb")


def forget_others(path: Path, lake_id: str) -> None:
    """Remove the file unless it is of this lake: a policy whose points decay never attaches it, nor begins it again."""
    if not path.exists():
        return
    try:
        with duckdb.connect(path, read_only=True) as connection:
            held = connection.execute("SELECT lake_id FROM info").fetchall()
    except duckdb.Error:
        held = []
    if held != [(lake_id,)]:
        forget_by_user(path)


def forget_by_user(path: Path) -> None:
    """Remove the file with its write-ahead log; the next refresh makes it anew."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def bring_up(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, policy: InForce) -> None:
    """Make `by_user` hold exactly the events of a snapshot, whose commits `read_commits` has read.

    One transaction: a crash leaves it as it was. The first time orders by user; what comes later lies behind that, in
    the order of commits.
    """
    actions, completing, keys = _completions(policy)
    connection.execute("SET VARIABLE completion_actions = ?", [actions])
    connection.execute("SET VARIABLE completing_actions = ?", [completing])
    connection.execute("SET VARIABLE completion_keys = ?", [keys])
    completions = repr(("with times", actions, keys))
    with transaction(connection):
        held = _held(connection, snapshot)
        after = held.version if held else _BEFORE_ALL
        if held is None:
            _begin(connection, snapshot)
        elif after < snapshot.version:
            _extend(connection, snapshot, after)
        if held is None or held.completions != completions:
            connection.execute(statement("refresh/by_user_meeting"))
            after = _BEFORE_ALL
        if keys and after < snapshot.version:
            connection.execute(statement("refresh/meeting", after=str(after)))
        _describe(connection, snapshot, completions)


def read_commits(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    """Read which version each batch of a snapshot made into the temporary table `committed`."""
    source = stored_rows(connection, "commits", snapshot.files.get("commits", ()))
    connection.execute(statement("refresh/committed", source=source, version=str(snapshot.version)))


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Generator[None]:
    """Commit what the block did, or nothing of it."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def last_batch(connection: duckdb.DuckDBPyConnection, version: int) -> str | None:
    """Return the batch that made the newest commit up to a version, of those that were read."""
    return one_row(connection.execute(statement("refresh/last_batch"), [version]))[0]


def _held(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> _Held | None:
    """Return what there is to be extended; None if it is nothing, or not of this snapshot's past."""
    rows = connection.execute("FROM by_user.info").fetchall()
    if not rows or rows[0][0] > snapshot.version:
        return None
    held = _Held(*rows[0])
    same = (held.lake_id, held.duckdb_version, held.last_batch)
    return held if same == (snapshot.lake_id, duckdb.__version__, last_batch(connection, held.version)) else None


def _begin(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    events = _events(connection, snapshot.files.get("events", ()), _BEFORE_ALL)
    connection.execute(statement("table", name="by_user.event", query=events))
    connection.execute("CREATE OR REPLACE TABLE by_user.file (path VARCHAR)")
    _remember_files(connection, snapshot)


def _extend(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, after: int) -> None:
    known = {path for (path,) in connection.execute("FROM by_user.file").fetchall()}
    files = tuple(path for path in snapshot.files["events"] if path not in known)
    events = _events(connection, files, after)
    connection.execute(statement("refresh/insert_rows", name="by_user.event", query=events))
    _remember_files(connection, snapshot)


def _events(connection: duckdb.DuckDBPyConnection, files: tuple[str, ...], after: int) -> str:
    """Return the query of the events in `files` that came after a version: compaction puts older ones beside them."""
    source = stored_rows(connection, "events", files)
    return statement("refresh/by_user", source=source, after=str(after))


def _remember_files(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    connection.execute("SET VARIABLE files = ?", [list(snapshot.files.get("events", ()))])
    connection.execute(statement("refresh/forget_files"))
    connection.execute(statement("refresh/remember_files"))


def _describe(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, completions: str) -> None:
    batch = last_batch(connection, snapshot.version)
    values = [snapshot.version, batch, snapshot.lake_id, duckdb.__version__, completions]
    connection.execute("DELETE FROM by_user.info")
    connection.execute("INSERT INTO by_user.info VALUES (?, ?, ?, ?, ?)", values)


def _completions(policy: InForce) -> tuple[list[str], list[str], list[str]]:
    """Return the actions that need or make a completion, those that make one, and where in metadata its name is.

    Corrections are among both: they may change the name.
    """
    gates = [(edition.rules, gate) for edition in policy.editions for gate in edition.rules.completion.values()]
    corrections = policy.rules.correction.actions if gates else ()
    completing = {*corrections, *(action for _, gate in gates for action in gate.by)}
    actions = completing | {action for rules, gate in gates for action in rules.covered(gate)}
    return sorted(actions), sorted(completing), sorted({_pointer(gate.key) for _, gate in gates})


def _pointer(key: str) -> str:
    """Return a metadata key as a JSON pointer (RFC 6901)."""
    return "/" + key.replace("~", "~0").replace("/", "~1")
