"""Tables of a reader, such as data frames, which SQL reads beside those of a warehouse.

Owns what is a table, and its form: an Arrow table in memory, so that no SQL refers to a Python object, and a locked
connection stays locked.
"""

from collections.abc import Mapping
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
        if isinstance(table, pl.LazyFrame):
            return table.collect().to_arrow()
        if _is_stream(table):
            return pa.table(table)
    except (duckdb.Error, pa.ArrowException, pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be read as a table: {escape_lines(str(error))}") from None
    raise UsageError(f"{name} is a {type(table).__name__}, which is not a table: give {_KINDS}")


def check_name(name: str, taken: list[str]) -> None:
    """Raise UsageError if a table of a reader has the name of one of `taken`; SQL ignores case."""
    if name.lower() in taken:
        raise UsageError(f"{name!r} is a table of the warehouse: give yours another name")
