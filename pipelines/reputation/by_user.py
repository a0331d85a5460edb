"""`by_user.duckdb`: the lake's events ordered by user, which a refresh reads instead of the whole lake.

A cache, opened only by the holder of the warehouse's lock. Every refresh extends it by the new commits; after an
erasure it is copied without the users. It is rebuilt from the lake when it is missing, damaged, or not of this lake's
past. The SQL is `sql/by_user.sql`.
Owns `by_user.event` and, for policies with a completion rule, `by_user.keyed_event`: the events at each metadata value
that a completion rule looks at, by hash.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from pipelines.formats import BY_USER
from pipelines.lake.erased_events import erased_events_since
from pipelines.lake.tables import Snapshot
from pipelines.reputation.database_file import log_file, next_file, remove_database, replace_durably
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
    erasures: int


def attach_by_user(connection: duckdb.DuckDBPyConnection, path: Path, snapshot: Snapshot) -> None:
    """Attach the file at `path` as `by_user`, or an empty one unless it can be extended to the snapshot.

    It must be readable, of this release's format and from the snapshot's past, whose commits `read_commits` has read.
    Users who were erased since are not in it.
    """
    connection.execute("DETACH DATABASE IF EXISTS by_user")
    info = _read_info(path)
    if info is None or not _precedes(connection, info, snapshot):
        delete_by_user(path)
    elif info.erasures != snapshot.erasures:
        _drop_erased(path, info, snapshot)
    connection.execute(f"ATTACH {literal(str(path))} AS by_user")
    connection.execute(statement("by_user_info"))


def by_user_path(warehouse: Path) -> Path:
    """Return the path of the file that belongs to a warehouse."""
    return warehouse.with_name("by_user.duckdb")


def delete_unless_of(path: Path, snapshot: Snapshot) -> None:
    """Delete the file unless it is of this lake, after the same erasures.

    A policy whose points decay never attaches the file, so `attach_by_user` would not replace it.
    """
    info = _read_info(path)
    if info is None or (info.lake_id, info.erasures) != (snapshot.lake_id, snapshot.erasures):
        delete_by_user(path)


def delete_by_user(path: Path) -> None:
    """Delete the file with its write-ahead log; the next refresh rebuilds it."""
    remove_database(path)
    remove_database(next_file(path))


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
        info = _attached_info(connection)
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


def _read_info(path: Path) -> _Info | None:
    """Return the state of a file that no connection has open; None if it is missing, empty, or of another format."""
    try:
        with duckdb.connect(path, read_only=True) as connection:
            rows = connection.execute(statement("by_user_stored_info"), [BY_USER.number]).fetchall()
    except duckdb.Error:
        return None
    return _Info(*rows[0]) if rows else None


def _attached_info(connection: duckdb.DuckDBPyConnection) -> _Info | None:
    rows = connection.execute("FROM by_user.info").fetchall()
    return _Info(*rows[0]) if rows else None


def _precedes(connection: duckdb.DuckDBPyConnection, info: _Info, snapshot: Snapshot) -> bool:
    """Return whether a file is from a snapshot's past."""
    if info.version > snapshot.version or info.erasures > snapshot.erasures:
        return False
    found = (info.lake_id, info.duckdb_version, info.last_batch)
    return found == (snapshot.lake_id, duckdb.__version__, last_batch(connection, info.version))


def _drop_erased(path: Path, info: _Info, snapshot: Snapshot) -> None:
    """Replace the file by a copy without the users erased since; delete it if they are no longer on record.

    Rows that were deleted in place would stay in free blocks of the file.
    """
    copy = next_file(path)
    try:
        erased = erased_events_since(snapshot, info.version, info.erasures)
        if len(erased):
            with duckdb.connect() as connection:
                connection.execute(f"ATTACH {literal(str(path))} AS by_user (READ_ONLY)")
                connection.execute(f"ATTACH {literal(str(copy))} AS next")
                connection.execute("SET temp_directory = ?", [f"{copy}.tmp"])
                _copy_remaining(connection, erased)
            log_file(path).unlink(missing_ok=True)  # its changes are in the copy
            replace_durably(copy, path)
    except (LookupError, FileNotFoundError, duckdb.Error):
        delete_by_user(path)


def _copy_remaining(connection: duckdb.DuckDBPyConnection, erased: pa.Table) -> None:
    connection.execute("SET memory_limit = '50%'")
    connection.register("arrow_rows", erased)
    connection.execute(statement("by_user_erased_user"))
    for name in ("event", "keyed_event", "file", "info"):
        connection.execute(statement(f"by_user_remaining_{name}"))
    connection.execute("CHECKPOINT next")
    connection.execute("DETACH next")


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
    made_by = [duckdb.__version__, completions, BY_USER.number]
    values = [snapshot.version, batch, snapshot.lake_id, *made_by, snapshot.erasures]
    connection.execute("DELETE FROM by_user.info")
    connection.execute("INSERT INTO by_user.info VALUES (?, ?, ?, ?, ?, ?, ?)", values)


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
