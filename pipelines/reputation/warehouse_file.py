"""The file of a published warehouse: what it says of itself, and connections that read nothing else.

The largest part of it is in another file, its base (`base.py`); the lake's events are views.
"""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from pipelines.boundary.database import connect
from pipelines.boundary.locked_sql import literal
from pipelines.errors import PERMISSION, UsageError, exit_status_of
from pipelines.formats import WAREHOUSE
from pipelines.lake.stores import register_s3
from pipelines.reputation.base import attach_base, has_base
from pipelines.reputation.lake_paths import files_of_views, look_in
from pipelines.reputation.policy import Policy
from pipelines.reputation.query_guard import lock_connection
from pipelines.reputation.query_limits import limit_queries, spill_beside
from pipelines.reputation.sql import statement
from pipelines.settings import QueriesSettings

USE_WAREHOUSE = "USE warehouse"
"""A statement for a new connection, after which names are those of the warehouse."""
# The lake's files never change, so their metadata is read once.
_METADATA_CACHE = "SET parquet_metadata_cache = true"
_ATTEMPTS = 3
"""A publication may remove the base of the file that was opened before it: the new file has another one."""

_MACHINE_ERRNOS = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT)
_MACHINE_CAUSES = [os.strerror(number) for number in _MACHINE_ERRNOS]


@dataclass(frozen=True, slots=True)
class Info:
    """The row of `snapshot_info`: lake version, moment and policy of a warehouse, and how it was derived."""

    lake_version: int
    as_of: datetime
    policy: Policy
    policy_version: str
    """The version that was in force at as_of."""
    derived_at: datetime
    karmalake_version: str
    recipe: str
    """A digest of the lake, the policy and the SQL that the warehouse was derived with."""
    last_batch: str | None
    """The batch_id of the commit of lake_version."""
    decayed_to: datetime | None
    """The moment that points are decayed to, the end of the policy's step; None where no points decay."""
    erasures: int
    """How many erasures and withdrawals the lake had applied."""
    merges: str
    """The merged users that the lake had, as `merges_mark` identifies them."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection may use, and access besides the warehouse and the lake's files of its snapshot."""

    all_files: bool = False
    """Whether SQL may read any file and load extensions."""
    output: Path | None = None
    """A file that karmalake writes rows to."""
    limits: QueriesSettings | None = None
    """Those of a reader's queries; our own commands have DuckDB's."""


NO_FILES = Access()
"""Nothing besides the warehouse and its lake, for readers' queries."""


def attach(path: Path, access: Access = NO_FILES) -> duckdb.DuckDBPyConnection:
    """Return a new read-only connection to the warehouse at `path`, restricted to what `access` allows.

    The file is attached to an empty in-memory database: connecting to the path, DuckDB would reuse the file that this
    process opened there earlier, even if a newer one has replaced it.
    Raises UsageError when there is no warehouse, it is damaged or an earlier release wrote it, NewerFormatError when a
    newer one did, and duckdb.IOException when this user may not read it, or the machine could not now.
    """
    if not path.exists():
        raise UsageError(_describe_missing(path))
    for _ in range(_ATTEMPTS - 1):
        with suppress(duckdb.Error):
            return _attach(path, access)
    try:
        return _attach(path, access)
    except duckdb.Error as error:
        if _may_pass(error) or exit_status_of(error) == PERMISSION:
            raise
        raise UsageError(_cannot_open(path, error)) from None


def _attach(path: Path, access: Access) -> duckdb.DuckDBPyConnection:
    connection = connect()
    spill_beside(connection, path.parent.absolute())
    if access.limits is not None:
        limit_queries(connection, access.limits)
    connection.execute(statement("attach_warehouse", path=literal(str(path))))
    connection.execute(_METADATA_CACHE)
    connection.execute(USE_WAREHOUSE)
    _require_own_format(connection, path)  # fails here for a truncated file
    if has_base(connection):
        attach_base(connection, path)
    if connection.execute(statement("views_of_objects")).fetchall():
        register_s3(connection)
    look_in(path.parent, connection)
    if not access.all_files:
        output = [] if access.output is None else [str(access.output)]
        lock_connection(connection, [*files_of_views(path.parent, connection), *output])
    return connection


def _may_pass(error: duckdb.Error) -> bool:
    """Return whether the machine was the reason, so that a retry may help. DuckDB tells it only by the message."""
    return isinstance(error, duckdb.IOException) and any(cause in str(error) for cause in _MACHINE_CAUSES)


def _describe_missing(path: Path) -> str:
    """Return that there is no warehouse, and what may be meant: another folder, or a lake without a warehouse yet."""
    folder = path.parent.absolute()
    if folder.is_file():
        return f"{folder} is a file: give its folder, {folder.parent}, to open_warehouse() or as data_dir"
    found = f"there is no warehouse at {folder / path.name}{'' if folder.is_dir() else ', and no such folder'}"
    derive = ", or derive one from the lake there by `karmalake refresh`" if (folder / "lake").is_dir() else ""
    return (
        f"{found}: set data_dir (KARMALAKE_DATA_DIR), or pass the data folder to open_warehouse(){derive}; a copy of "
        "one suffices, since a warehouse is only read"
    )


def _cannot_open(path: Path, error: duckdb.Error) -> str:
    cause = str(error).partition("\n")[0].rstrip(".!")
    return f"the warehouse cannot be opened: {cause}: rebuild {path} with `karmalake rebuild`"


def _require_own_format(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    found, writer = stored_format(connection)
    WAREHOUSE.require_known(found, str(path), writer)
    if found < WAREHOUSE.number:
        raise UsageError(f"{path} was written by karmalake {writer} in an older format: run `karmalake refresh`")


def stored_format(connection: duckdb.DuckDBPyConnection) -> tuple[int, str]:
    """Return the format of a warehouse, and the release that wrote it. Raises duckdb.Error for none."""
    row = connection.sql("FROM snapshot_info").pl().row(0, named=True)
    return row.get("format", 0), row["karmalake_version"]


def stored_info(connection: duckdb.DuckDBPyConnection) -> Info:
    """Return the row of `snapshot_info`. Raises duckdb.Error for a warehouse without it."""
    row = connection.sql("FROM snapshot_info").pl().row(0, named=True)
    return Info(
        lake_version=row["lake_version"],
        as_of=row["as_of"],
        policy=Policy.model_validate_json(row["policy"]),
        policy_version=row["policy_version"],
        derived_at=row["derived_at"],
        karmalake_version=row["karmalake_version"],
        recipe=row.get("recipe", ""),
        last_batch=row.get("last_batch"),
        decayed_to=row.get("decayed_to"),
        erasures=row.get("erasures", 0),
        merges=row.get("merges", ""),
    )
