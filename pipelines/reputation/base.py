"""The base of a warehouse: a DuckDB file with all its tables as of some moment, which never changes.

The file `warehouse.duckdb` names its base, and holds what changed since: the users whose rows in the base are
superseded, all rows of these users, the differences to sums by day (`day_sums.py`), and the small tables. Its views
combine both, so readers see the tables of a warehouse, and a publication costs what changed. A base is complete and
durable before a published file names it, and is removed when no published file does; a reader that has it open keeps
it. The SQL is `sql/base.sql`.
"""

from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex

import duckdb

from pipelines.boundary.database import connect
from pipelines.boundary.locked_sql import identifier, literal
from pipelines.boundary.private_files import make_inner_dir
from pipelines.lake.files import make_durable
from pipelines.reputation.database_file import remove_database
from pipelines.reputation.day_sums import create_view_of_sums
from pipelines.reputation.sql import one_row, statement
from pipelines.reputation.warehouse_tables import DAY_SUMS, SCORES, is_user_table

_SUFFIX = ".duckdb"


def base_folder(warehouse: Path) -> Path:
    """Return the folder that belongs to a warehouse."""
    return warehouse.with_name("base")


def new_base(folder: Path) -> Path:
    """Return the path of a base to write: a higher number than any file has.

    The name is unique, so a file of changes that was copied from elsewhere never fits another base.
    """
    make_inner_dir(folder)
    return folder / f"{1 + max(_numbers(folder), default=0):08}-{token_hex(4)}{_SUFFIX}"


def published_base(warehouse: Path) -> str | None:
    """Return the name of the base of a published warehouse; None if there is no warehouse. Raises duckdb.Error."""
    if not warehouse.exists():
        return None
    with connect() as connection:
        connection.execute(statement("attach_warehouse", path=literal(str(warehouse))))
        return one_row(connection.execute(statement("base_named", catalog="warehouse")))[0]


def attach_base(connection: duckdb.DuckDBPyConnection, warehouse: Path) -> Path:
    """Attach the base that the file of a connection's current catalog names; return its path. Raises duckdb.Error."""
    catalog = _catalog(connection)
    (name,) = one_row(connection.execute(statement("base_named", catalog=identifier(catalog))))
    path = base_folder(warehouse) / name
    connection.execute(statement("base_attach", path=literal(str(path))))
    return path


def has_base(connection: duckdb.DuckDBPyConnection) -> bool:
    """Return whether the file of a connection's current catalog has a base; an exported one has all rows itself."""
    return bool(connection.execute(statement("base_is_divided", catalog=_catalog(connection))).fetchall())


def create_changes(connection: duckdb.DuckDBPyConnection, base: Path, counts: Iterable[int]) -> None:
    """Make the empty database of a connection a warehouse without changes to a base.

    counts: the numbers of users, events and events that count.
    """
    connection.execute(statement("base_attach", path=literal(str(base))))
    connection.execute(statement("base_schema"))
    connection.execute(statement("base_name"), [base.name])
    connection.execute(statement("base_counts"), list(counts))
    connection.execute(statement("base_users"))
    for name in _tables(connection, "base"):
        if is_user_table(name):
            connection.execute(statement("base_changed_rows", name=name))
            connection.execute(statement("base_view", name=name))
        elif name in DAY_SUMS:
            connection.execute(statement("base_changed_rows", name=name))
            create_view_of_sums(connection, name)
        else:
            connection.execute(statement("base_copy", name=name))


def replace_changes(connection: duckdb.DuckDBPyConnection, base: Path) -> None:
    """Make the warehouse of a connection, whose base is detached, one without changes to another base.

    Tables that are no trends remain.
    """
    connection.execute(statement("base_attach", path=literal(str(base))))
    connection.execute(statement("base_name"), [base.name])
    connection.execute(statement("base_users"))
    for name in (*divided_tables(connection), *DAY_SUMS):
        connection.execute(statement("base_changed_rows", name=name))
    connection.execute(statement("base_copy", name=SCORES))


def divided_tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the tables of a warehouse whose rows belong to users: those that its base and its changes share."""
    return [name for name in _tables(connection, "base") if is_user_table(name)]


def write_base(connection: duckdb.DuckDBPyConnection, base: Path) -> None:
    """Write the rows of a warehouse to a new file, as a base of its own, durably.

    No byte of a row that was deleted is in it (`erasable`). Raises duckdb.Error when the disk is full.
    """
    undivided = _tables(connection, _catalog(connection))
    orders = dict.fromkeys((*undivided, *DAY_SUMS), "ALL") | dict.fromkeys(divided_tables(connection), "user_id")
    connection.execute(f"ATTACH {literal(str(base))} AS next")
    try:
        for name, order in orders.items():
            connection.execute(statement("base_write", name=name, order=order))
        connection.execute("CHECKPOINT next")
    finally:
        connection.execute("DETACH next")
    make_durable([base])


def remove_base(base: Path) -> None:
    """Remove a base that no published file names, with the files beside it."""
    _remove(base.parent.glob(f"{base.stem}*"))


def remove_older_bases(folder: Path, keep: str) -> None:
    """Remove the bases before one, with the files beside them."""
    _remove(file for file in folder.glob("[0-9]*") if file.name < keep.removesuffix(_SUFFIX))


def remove_other_bases(folder: Path, keep: str | None) -> None:
    """Remove all files of the folder but those of one base."""
    _remove(file for file in folder.glob("*") if not keep or not file.name.startswith(keep.removesuffix(_SUFFIX)))


def _remove(files: Iterable[Path]) -> None:
    for file in sorted(files):
        remove_database(file) if file.suffix == _SUFFIX else file.unlink(missing_ok=True)


def _catalog(connection: duckdb.DuckDBPyConnection) -> str:
    return one_row(connection.execute("SELECT current_database()"))[0]


def _tables(connection: duckdb.DuckDBPyConnection, catalog: str) -> list[str]:
    return [name for (name,) in connection.execute(statement("base_tables", catalog=catalog)).fetchall()]


def _numbers(folder: Path) -> list[int]:
    return [int(number) for file in folder.iterdir() if (number := file.name.partition("-")[0]).isdecimal()]
