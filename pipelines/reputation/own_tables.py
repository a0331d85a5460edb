"""Tables of a reader, such as data frames, which SQL reads beside those of a warehouse.

Owns what is a table, and its form: an Arrow table in memory, so that no SQL refers to a Python object, and a locked
connection stays locked.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.boundary.text import escape_lines
from pipelines.errors import UsageError

Tables = Mapping[str, Any]
"""Tables by the names that SQL calls them: frames of polars and pandas, tables of Arrow, relations of DuckDB."""
_KINDS = "a frame of polars or pandas, a table of Arrow or a relation of DuckDB"


def is_table(value: object) -> bool:
    """Return whether a value can be read as a table: its class exports an Arrow stream, or it is a lazy frame."""
    return isinstance(value, pl.LazyFrame) or _is_stream(value)


def _is_stream(value: object) -> TypeGuard[Any]:
    return not isinstance(value, type | pl.Series) and hasattr(type(value), "__arrow_c_stream__")


def as_arrow(name: str, table: object) -> pa.Table:
    """Return a table of a reader as an Arrow table; a lazy frame or relation is run. Raises UsageError for another."""
    try:
        table = table.collect() if isinstance(table, pl.LazyFrame) else table
        if isinstance(table, pl.DataFrame):
            _refuse_objects(name, table)
        if _is_stream(table):
            return pa.table(table)
    except (duckdb.Error, pa.ArrowException, pl.exceptions.PolarsError, OSError, TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be read as a table: {escape_lines(str(error))}") from None
    raise UsageError(f"{name} is a {type(table).__name__}, which is not a table: give {_KINDS}")


def _refuse_objects(name: str, frame: pl.DataFrame) -> None:
    """Raise UsageError for a column of Python objects: polars would export the addresses of the objects."""
    if found := [column for column, kind in frame.schema.items() if kind == pl.Object]:
        raise UsageError(f"{name} has Python objects in the column {found[0]!r}: cast it, such as to pl.String")


def select_named(named: Collection[str], tables: Tables | None) -> dict[str, Any]:
    """Return those of a reader's tables that a query names; SQL ignores case, but the same spelling goes first.

    named: the names as the query spells them.
    Raises UsageError for tables without names, and if a name of the query may mean several.
    """
    # a notebook has no type checker
    if not isinstance(tables, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"tables is a {type(tables).__name__}: give a dictionary, such as tables={{'mine': frame}}")
    given = tables or {}
    meant = {name.lower() for name in named} - {name.lower() for name in named if name in given}
    found = {name: table for name, table in given.items() if name in named or str(name).lower() in meant}
    if len({name.lower() for name in found}) < len(found):
        raise UsageError(
            f"{' and '.join(map(repr, sorted(found)))} are one name in SQL, which ignores case: rename one"
        )
    return found


def without(name: str, tables: Tables) -> dict[str, Any]:
    """Return tables without the one that SQL calls `name`, in any case."""
    return {other: table for other, table in tables.items() if other.lower() != name.lower()}


def check_name(name: str, taken: list[str]) -> None:
    """Raise UsageError if a table of a reader has the name of one of `taken`; SQL ignores case."""
    if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance] - as above
        raise UsageError(f"{name!r} is not a name: give a text, such as 'mine'")
    if name.lower() in taken:
        raise UsageError(f"{name!r} is a table of the warehouse: give yours another name")
