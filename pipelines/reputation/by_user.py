"""`by_user.duckdb`: the lake's events ordered by user, which a refresh reads instead of the whole lake.

A cache, opened only by the holder of the warehouse's lock. Every refresh extends it by the new commits; it is rebuilt
from the lake when it is missing, damaged, or of another lake. The SQL is `sql/by_user.sql`.
Owns `by_user.event` and, for policies with a completion rule, `by_user.keyed_event`: the events at each metadata value
that a completion rule looks at, by hash.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from pipelines.formats import BY_USER
from pipelines.lake.tables import Snapshot
from pipelines.reputation.lake_views import stored_rows
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.sql import literal, one_row, statement

_BEFORE_ALL = -1
"""The version before every commit."""


@dataclass(frozen=True, slots=True)
class _Info:
    """The row of `by_user.info`."""

    version: int
    last_batch: str | None
    lake_id: str
    duckdb_version: str
    completions: str
    format: int


def attach_by_user(connection: duckdb.DuckDBPyConnection, path: Path, lake_id: str) -> None:
    """Attach the file at `path` as `by_user`; replace it by an empty one if it is of another lake or format.

    An unreadable one is replaced, too. The file is deleted, not only its rows: the rows of an erased user would stay in
    its free blocks.
    """
    attach = f"ATTACH IF NOT EXISTS {literal(str(path))} AS by_user"
    try:
        connection.execute(attach)
        connection.execute(statement("by_user_info"))
        of_another = "SELECT 1 FROM by_user.info WHERE lake_id <> ? OR format <> ?"
        others = connection.execute(of_another, [lake_id, BY_USER.number]).fetchall()
    except duckdb.Error:
        others = [()]
    if others:
        connection.execute("DETACH DATABASE IF EXISTS by_user")
        delete_by_user(path)
        connection.execute(attach)
        connection.execute(statement("by_user_info"))


def by_user_path(warehouse: Path) -> Path:
    """Return the path of the file that belongs to a warehouse."""
    return warehouse.with_name("by_user.duckdb")


def delete_unless_of(path: Path, lake_id: str) -> None:
    """Delete the file unless it is of this lake.

    A rebuild does not attach the file, and a refresh, which would replace it, may come much later.
    """
    if not path.exists():
        return
    try:
        with duckdb.connect(path, read_only=True) as connection:
            found = connection.execute("SELECT lake_id, format FROM info").fetchall()
    except duckdb.Error:
        found = []
    if found != [(lake_id, BY_USER.number)]:
        delete_by_user(path)


def delete_by_user(path: Path) -> None:
    """Delete the file with its write-ahead log; the next refresh rebuilds it."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def sync_to_snapshot(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, policy: EffectivePolicy) -> None:
    """Make `by_user` contain exactly the events of a snapshot whose commits `read_commits` has read.

    One transaction: a crash leaves the file as it was. The first call stores events ordered by user; later ones append
    the new events in the order of commits.
    """
    actions, completing, keys = _completions(policy)
    connection.execute("SET VARIABLE completion_actions = ?", [actions])
    connection.execute("SET VARIABLE completing_actions = ?", [completing])
    connection.execute("SET VARIABLE completion_keys = ?", [keys])
    completions = repr(("keyed_event", actions, keys))
    with transaction(connection):
        info = _usable_info(connection, snapshot)
        after = info.version if info else _BEFORE_ALL
        if info is None:
            _store_all(connection, snapshot)
        elif after < snapshot.version:
            _append(connection, snapshot, after)
        if info is None or info.completions != completions:
            connection.execute(statement("by_user_keyed_event"))
            after = _BEFORE_ALL
        if keys and after < snapshot.version:
            connection.execute(statement("by_user_insert_keyed_events", after=str(after)))
        _write_info(connection, snapshot, completions)


def read_commits(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    """Read the version of each batch of a snapshot into the temporary table `committed`."""
    source = stored_rows(connection, "commits", snapshot)
    connection.execute(statement("by_user_committed", source=source, version=str(snapshot.version)))


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Generator[None]:
    """Run the block in a transaction: commit at its end, roll back on any exception."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def last_batch(connection: duckdb.DuckDBPyConnection, version: int) -> str | None:
    """Return the batch_id of the newest commit up to a version, among those that `read_commits` has read."""
    return one_row(connection.execute(statement("by_user_last_batch"), [version]))[0]


def _usable_info(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> _Info | None:
    """Return the state of the file if it can be extended: it must be from this snapshot's past."""
    rows = connection.execute("FROM by_user.info").fetchall()
    if not rows or rows[0][0] > snapshot.version:
        return None
    info = _Info(*rows[0])
    found = (info.lake_id, info.duckdb_version, info.last_batch)
    return info if found == (snapshot.lake_id, duckdb.__version__, last_batch(connection, info.version)) else None


def _store_all(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    events = _events(connection, snapshot, _BEFORE_ALL)
    connection.execute(statement("create_table", name="by_user.event", query=events))
    connection.execute("CREATE OR REPLACE TABLE by_user.file (path VARCHAR)")
    _write_files(connection, snapshot)


def _append(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, after: int) -> None:
    known = {path for (path,) in connection.execute("FROM by_user.file").fetchall()}
    files = tuple(path for path in snapshot.files["events"] if path not in known)
    new = replace(snapshot, files={**snapshot.files, "events": files})
    events = _events(connection, new, after)
    connection.execute(statement("insert_rows", name="by_user.event", query=events))
    _write_files(connection, snapshot)


def _events(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, after: int) -> str:
    """Return the query of the events committed after a version: a compacted file has older ones too."""
    source = stored_rows(connection, "events", snapshot)
    return statement("by_user_events", source=source, after=str(after))


def _write_files(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    connection.execute("SET VARIABLE files = ?", [list(snapshot.files.get("events", ()))])
    connection.execute(statement("by_user_delete_files"))
    connection.execute(statement("by_user_insert_files"))


def _write_info(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, completions: str) -> None:
    batch = last_batch(connection, snapshot.version)
    values = [snapshot.version, batch, snapshot.lake_id, duckdb.__version__, completions, BY_USER.number]
    connection.execute("DELETE FROM by_user.info")
    connection.execute("INSERT INTO by_user.info VALUES (?, ?, ?, ?, ?, ?)", values)


def _completions(policy: EffectivePolicy) -> tuple[list[str], list[str], list[str]]:
    """Return the actions that need or make a completion, those that make one, and the JSON pointers of the keys.

    Corrections are among both: they may change the key's value.
    """
    gates = [(edition.rules, gate) for edition in policy.editions for gate in edition.rules.completion.values()]
    corrections = policy.rules.correction.actions if gates else ()
    completing = {*corrections, *(action for _, gate in gates for action in gate.by)}
    actions = completing | {action for rules, gate in gates for action in rules.covered_actions(gate)}
    return sorted(actions), sorted(completing), sorted({_pointer(gate.key) for _, gate in gates})


def _pointer(key: str) -> str:
    """Return a metadata key as a JSON pointer (RFC 6901)."""
    return "/" + key.replace("~", "~0").replace("/", "~1")
